"""Ask an OpenAI-compatible server for chat completions, and turn each bad answer into an error that says what to do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of, need
from fastflow.evaluate.creative.settings import KEY_VARIABLE, JudgeConfig
from fastflow.rollout.server.http import CONNECT_SECONDS, Backoff, errors_of, headers_for, read_key, words_of

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 60.0  # seconds that a server's Retry-After may ask for
_AGAIN = (408, 409, 425, 429)  # and 500 or more: another try may help
_OF_THE_REQUEST = (400, 413, 422)  # this request cannot be answered; others may be
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Reply:
    """What the judge said. prompt_tokens, completion_tokens: what the server counts; 0 where it counts nothing."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    model: str = ""


class Refused(Exception):
    """The server cannot answer this request, for example since it is too long."""


class _Failed(Exception):
    """Another try may help. wait: seconds that the server asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class ChatClient:
    """Connections to one server. The key comes from the environment alone, and no message shows it."""

    def __init__(self, settings: JudgeConfig):
        package = need("httpx", extra="creative", purpose="judge.address")
        self._settings, self._address = settings, (settings.address or "").rstrip("/")
        self._errors = errors_of(package)
        self._key = read_key(KEY_VARIABLE)
        self._http: httpx.AsyncClient = package.AsyncClient(
            timeout=package.Timeout(settings.timeout, connect=min(settings.timeout, CONNECT_SECONDS), pool=None),
            limits=package.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            headers=headers_for(self._key),
            trust_env=urlsplit(self._address).hostname not in _LOOPBACK,  # no proxy for a server on this machine
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def only_model(self) -> str:
        """Return the name of the only model that the server lists. Raises FastflowError where there are several."""
        answer = await self._with_retries("GET", "/models", None)
        try:
            names = [str(entry["id"]) for entry in answer["data"]]
        except (KeyError, TypeError) as error:
            raise FastflowError(f"the judge at {self._address} lists no models; set --judge.model") from error
        if len(names) != 1:
            raise FastflowError(
                f"the judge at {self._address} has {len(names)} models ({', '.join(names[:5])}); set --judge.model"
            )
        return names[0]

    async def complete(self, body: dict[str, Any]) -> Reply:
        """Return the reply to a chat. Raises Refused for this request alone, FastflowError where all would fail."""
        answer = await self._with_retries("POST", "/chat/completions", body)
        try:
            choice = answer["choices"][0]
            text = choice["message"].get("content")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise FastflowError(
                f"the judge at {self._address} answered without choices; check that its address ends as in /v1"
            ) from error
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        return Reply(
            self._without_key(text) if isinstance(text, str) else "",  # None: refused, or nothing but thoughts
            _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")),
            str(choice.get("finish_reason") or ""), str(answer.get("model") or ""),
        )  # fmt: skip

    async def _with_retries(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        backoff, tries = Backoff(first=0.5, longest=30.0), self._settings.attempts
        for attempt in range(1, tries + 1):
            try:
                return await asyncio.wait_for(self._ask(method, path, body), self._settings.timeout)
            except asyncio.TimeoutError:  # a class of its own on Python 3.10
                failure = _Failed(f"gave no answer within judge.timeout = {self._settings.timeout:g} s")
            except _Failed as error:
                failure = error
            if attempt < tries:
                await asyncio.sleep(max(backoff.seconds(), failure.wait or 0.0))
        raise FastflowError(
            f"the judge at {self._address} {failure}, {counted(tries, 'time')}; check the server, or raise "
            "judge.attempts. What it has said is kept: the same command goes on from there"
        )

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = await self._http.request(method, self._address + path, json=body)
        except self._errors as error:
            raise _Failed(f"does not answer ({message_of(error)})") from error
        if answer.is_success:
            try:
                return answer.json()
            except ValueError as error:
                raise _Failed("answered with something other than JSON") from error
        said = f"answered {path} with {answer.status_code}: {self._without_key(words_of(answer))}"
        if answer.status_code in _AGAIN or answer.status_code >= 500:
            raise _Failed(said, _wait(answer))
        if answer.status_code in _OF_THE_REQUEST:
            raise Refused(said)
        if answer.status_code in (401, 403):
            said += f"; put its key into the environment variable {KEY_VARIABLE}"
        raise FastflowError(f"the judge at {self._address} {said}; check judge.address and judge.model")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _wait(answer: httpx.Response) -> float | None:
    try:
        return min(max(float(answer.headers.get("retry-after", "")), 0.0), LONGEST_WAIT)
    except ValueError:
        return None
