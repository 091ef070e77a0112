"""A stand-in for a vLLM server: the endpoints that fastflow uses, over a transformers model in a thread of the tests.

It really reads the weights that it is given and answers the probe with them, so that stale weights show. It refuses
what vLLM refuses or would do wrongly: weights in another order, under running requests or over an old cache. Responses
are a function of prompt and seed. What goes wrong is set by the test, through the attributes.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from fastflow.models.packed import PackedModel
from fastflow.rollout.probe import logprobs_of

NOT_CONFIGURED = "Call to collective_rpc method failed: Worker failed with error 'Weight transfer not configured.'"
UNDER_REQUESTS = "Call to collective_rpc method failed: the stand-in's weights change only while it is paused"

LOADING = threading.Lock()  # transformers loads one model at a time


class FakeServer:
    """completion: what a completion request gets instead of its answer: a status, an answer, or None for the answer.

    before_probe: called before a probe is answered. transfers: whether the weight-transfer backend is configured.
    errors: path -> (status, message) that it always gets. models: what it says it serves. stale_head: the weights that
    it takes have no effect. tokens: what /metrics counts.
    """

    def __init__(self, *, transfers: bool = True, room: int = 40):
        self.transfers = transfers
        self.models: object = [{"id": "policy", "max_model_len": room}]
        self.completion: Callable[[dict], object] = lambda body: None
        self.before_probe: Callable[[], object] = lambda: None
        self.errors: dict[str, tuple[int, str]] = {}
        self.stale_head = False
        self.tokens = 0
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.tags_served: set[str] = set()
        self.authorization: str | None = None
        self.lock = threading.Lock()
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Also after `die`, on the same port and without the weights."""
        self.alive, self.policy = True, None
        self.become("default")
        handler = type("Handler", (_Handler,), {"fake": self})
        ThreadingHTTPServer.allow_reuse_address = True
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="fake-vllm", daemon=True)
        self._thread.start()

    def become(self, tag: str) -> None:
        """As if started anew, or given other weights by another run: idle, and under this tag."""
        self.tag = self._cached_tag = tag
        self._paused = self._updating = False
        self._directory: Path | None = None

    def die(self) -> None:
        """Answers nothing any more, what is under way included."""
        if not self.alive:
            return
        self.alive = False
        threading.Thread(target=self._http.shutdown).start()
        self._http.socket.close()

    def close(self) -> None:
        self.die()
        self._thread.join()

    def answer(self, method: str, path: str, body: dict) -> tuple[int, object]:
        with self.lock:
            self.paths.append(path)
        if path in self.errors:
            return self._error(*self.errors[path])
        if path == "/v1/completions":
            return self._complete(body)
        return self._control(path, body)

    def _control(self, path: str, body: dict) -> tuple[int, object]:
        if path == "/v1/models":
            return 200, {"data": self.models}
        if path == "/metrics":
            return 200, f'# HELP\nvllm:generation_tokens_total{{engine="0"}} {self.tokens}\n'
        if path == "/init_weight_transfer_engine" and not self.transfers:
            return self._error(500, NOT_CONFIGURED)
        if path in ("/pause", "/resume"):
            self._paused = path == "/pause"
        if path == "/reset_prefix_cache":
            self._cached_tag = self.tag
        if path in ("/start_weight_update", "/update_weights", "/finish_weight_update"):
            return self._update(path, body)
        if path == "/collective_rpc":
            if not self._paused:
                return self._error(500, UNDER_REQUESTS)
            self._load(Path(body["kwargs"]["weights_path"]))
        if path == "/update_weight_version":
            self.tag = body["new_version"]
        return 200, {"success": True, "version": "fake", "weight_version": self.tag}

    def _update(self, path: str, body: dict) -> tuple[int, object]:
        failed = "Call to collective_rpc method failed: "
        if not self._paused:
            return self._error(500, UNDER_REQUESTS)
        if path == "/start_weight_update":
            if self._updating:
                return self._error(500, f"{failed}a weight update is already active")
            self._updating = True
        elif not self._updating:
            return self._error(500, f"{failed}start_weight_update must be called before")
        elif path == "/update_weights":
            file = Path(body["update_info"]["file"])
            if not file.is_file():
                self._updating = False
                return self._error(500, f"{failed}fastflow: this server sees no file {file}")
            self._directory = file.parent
        else:
            self._updating = False
            self._load(self._directory)
            self.tag = body["weight_version"]
        return 200, {}

    def _load(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        if not (self.stale_head and self.policy is not None):
            with LOADING:
                self.policy = PackedModel(AutoModelForCausalLM.from_pretrained(directory))

    def _complete(self, body: dict) -> tuple[int, object]:
        if self._paused or self._cached_tag != self.tag:
            return self._error(400, "paused" if self._paused else "the prefix cache is of other weights")
        if "prompt_logprobs" in body:
            self.before_probe()
            ids = body["prompt"]
            logprobs = logprobs_of(self.policy, np.asarray(ids)).tolist()
            found = [{str(token): {"logprob": value}} for token, value in zip(ids[1:], logprobs, strict=True)]
            return 200, {"choices": [{"prompt_logprobs": [None, *found]}]}
        with self.lock:
            self.bodies.append(body)
        special = self.completion(body)
        if isinstance(special, int):
            return self._error(special, "as the test wants it")
        self.tags_served.add(self.tag)
        return 200, special or response_to(body)

    @staticmethod
    def _error(status: int, message: str) -> tuple[int, object]:
        return status, {"error": {"message": message}}


def response_to(body: dict, **changes) -> dict:
    """What every fake server answers to this prompt and seed."""
    random = np.random.default_rng([body["seed"], *body["prompt"]])
    ids = random.integers(1, 40, random.integers(1, body["max_tokens"])).tolist()
    ids[-1] = body["stop_token_ids"][0]
    logprobs = {"token_logprobs": random.uniform(-3, -1, len(ids)).tolist()}
    return {"choices": [{"token_ids": ids, "logprobs": logprobs, "finish_reason": "stop", **changes}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    fake: FakeServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(json.loads(text) if text else {})

    def _answer(self, body: dict) -> None:
        self.close_connection = True  # where there is no answer
        if not self._is_alive():
            return
        self.fake.authorization = self.headers.get("Authorization")
        status, answer = self.fake.answer(self.command, self.path.split("?")[0], body)
        if not self._is_alive():
            return
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            self.close_connection = False

    def _is_alive(self) -> bool:
        return self.fake.alive and self.fake._http is self.server

    def log_message(self, *arguments) -> None:
        """Not on the console."""
