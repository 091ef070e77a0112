"""Talk to one vLLM server over HTTP, and turn each bad answer into an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastflow.errors import FastflowError, message_of, need
from fastflow.rollout.server.http import CONNECT_SECONDS, errors_of, headers_for, read_key, words_of

if TYPE_CHECKING:
    import httpx

BRIEF_SECONDS = 10.0  # for requests that a healthy server answers at once
COMPLETIONS = "/v1/completions"
KEY_VARIABLE = "VLLM_API_KEY"
BUSY = (429, 503)
GENERATED = re.compile(r"^vllm:generation_tokens_total(?:{[^}]*})? (\S+)$", re.MULTILINE)


class Unreachable(Exception):
    """The server gave no usable answer; another attempt may help, there or at another server."""


class Busy(Unreachable):
    """The server runs, and asks for a later attempt."""


class WorkerError(Unreachable):
    """vLLM passed a command on to its workers, which failed; another attempt would fail too."""


class Client:
    """HTTP to one address, over connections that stay open.

    connections: maximum concurrent requests. patience: seconds that an answer may take. Sampled responses have no limit
    here, since whoever waits for them sees by other signs whether the server is alive; brief requests have
    BRIEF_SECONDS at most. The key of a server with --api-key comes from the environment variable VLLM_API_KEY.
    """

    def __init__(self, address: str, *, connections: int, patience: float):
        httpx = need("httpx", extra="server", purpose="rollout.engine = vllm-server")
        self.address = address
        self._errors = errors_of(httpx)
        self._unlimited = httpx.Timeout(patience, connect=CONNECT_SECONDS, read=None, pool=None)
        self._brief = httpx.Timeout(min(patience, BRIEF_SECONDS), pool=None)
        self._http = httpx.AsyncClient(
            base_url=address,
            timeout=httpx.Timeout(patience, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=connections + 4, max_keepalive_connections=connections + 4),
            headers=headers_for(read_key(KEY_VARIABLE)),
            verify=address.startswith("https:"),  # reading the certificates is slow
            trust_env=False,  # a proxy in the environment is not for these servers
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def check_health(self) -> None:
        await self._ask("GET", "/health", timeout=self._brief)

    async def get(self, path: str, field: str) -> Any:
        """Return one field of the answer."""
        answer = await self._json("GET", path, timeout=self._brief)
        if not isinstance(answer, dict) or field not in answer:
            raise FastflowError(
                f"the server at {self.address} answered GET {path} without {field}; check that vLLM listens there"
            )
        return answer[field]

    async def post(self, path: str, body: dict[str, Any] | None = None, **parameters: str) -> Any:
        return await self._json("POST", path, json=body, params=parameters)

    async def resume(self) -> None:
        """End a pause."""
        await self._json("POST", "/resume", timeout=self._brief)

    async def complete(self, body: dict[str, Any]) -> Any:
        """Return the answer to a completion request, however long it takes."""
        return await self._json("POST", COMPLETIONS, json=body, timeout=self._unlimited)

    async def prompt_logprobs(self, model: str, ids: Sequence[int]) -> list[float]:
        """Return the log-probs of the ids after the first."""
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        try:
            (choice,) = (await self.post(COMPLETIONS, body))["choices"]
            found = zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)
            return [entry[str(token)]["logprob"] for entry, token in found]
        except (KeyError, TypeError, ValueError) as error:
            raise FastflowError(
                f"the server at {self.address} gave no log-probs of its prompt; fastflow needs vLLM 0.32"
            ) from error

    async def tokens_generated(self) -> float | None:
        """Return a count that grows while the server generates; None where the server does not report one."""
        try:
            text = (await self._ask("GET", "/metrics")).text
        except (Unreachable, FastflowError):
            return None
        counts = GENERATED.findall(text)
        return sum(map(float, counts)) if counts else None

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        answer = await self._ask(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            raise FastflowError(
                f"the server at {self.address} answered {method} {path} with something other than JSON; check that "
                "vLLM listens there"
            ) from error

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer. Raises Unreachable where another attempt may help, and FastflowError where none can."""
        try:
            answer = await self._http.request(method, path, **options)
        except self._errors as error:
            raise Unreachable(f"the server at {self.address} does not answer {path} ({message_of(error)})") from error
        if answer.is_success:
            return answer
        said = f"the server at {self.address} answered {method} {path} with {answer.status_code}: {words_of(answer)}"
        if answer.status_code in BUSY:
            raise Busy(said)
        if answer.status_code == 500 and "collective_rpc method failed" in said:
            raise WorkerError(said)
        if answer.status_code >= 500:
            raise Unreachable(said)
        if answer.status_code in (401, 403):
            raise FastflowError(f"{said}; put its --api-key into the environment variable {KEY_VARIABLE}")
        if answer.status_code == 404 and not path.startswith("/v1/"):
            raise FastflowError(
                f"{said}; fastflow needs vLLM 0.32, started with VLLM_SERVER_DEV_MODE=1, to change its weights"
            )
        raise FastflowError(f"{said}; check rollout.servers and how that server was started")
