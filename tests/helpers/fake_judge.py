"""A stand-in for an OpenAI-compatible judge on loopback: it reads the request and answers as the test wants.

say: what the judge replies to a request's messages, or a status with a message. Requests are kept in `bodies`, but the
greeting before an evaluation is counted apart.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastflow.evaluate.creative.judge import GREETING

Answer = str | tuple[int, str] | None


class FakeJudge:
    """say: from the messages to a reply, (status, message), or None for a connection that is closed without an answer.

    key: what the server wants as its key; None wants none. pause: seconds before each answer. after: a Retry-After.
    """

    def __init__(self, say: Callable[[list[dict]], Answer], *, models=("referee",), key=None, pause=0.0, after=None):
        self.say, self.models, self.key, self.pause, self.after = say, models, key, pause, after
        self.bodies: list[dict] = []
        self.greetings, self.greeting = 0, "yes"
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict, authorization: str | None) -> tuple[int, object] | None:
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": f"no such key: {authorization}"}}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.models]}
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": "not here"}}
        if body["messages"][0]["content"] == GREETING:
            self.greetings += 1
            return self._said(self.greeting, body)
        with self.lock:
            self.bodies.append(body)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(self.pause)
        said = self.say(body["messages"])
        with self.lock:
            self.now -= 1
        return self._said(said, body)

    def _said(self, said: Answer, body: dict) -> tuple[int, object] | None:
        if said is None:
            return None
        if isinstance(said, tuple):
            return said[0], {"error": {"message": said[1]}}
        usage = {"prompt_tokens": sum(len(entry["content"].split()) for entry in body["messages"]),
                 "completion_tokens": len(said.split())}  # fmt: skip
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": usage, "model": body["model"]}


def texts_in(messages: list[dict]) -> dict[str, str]:
    """The quoted texts of the first question: request, text, first, second and the like."""
    content = messages[1]["content"]
    found, decoder, place = {}, json.JSONDecoder(), 0
    while match := re.compile(r"([a-z0-9 ]+): ").match(content, place):
        text, place = decoder.raw_decode(content, match.end())
        found[match[1]] = text
        place += 2
    assert place >= len(content), "something stands outside of the quotations"
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeJudge

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict) -> None:
        found = self.fake.answer(self.path, body, self.headers.get("Authorization"))
        self.close_connection = found is None
        if found is None:
            return
        data = json.dumps(found[1]).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(found[0])
            self.send_header("Content-Length", str(len(data)))
            if self.fake.after is not None and found[0] != 200:
                self.send_header("Retry-After", str(self.fake.after))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        """Not on the console."""
