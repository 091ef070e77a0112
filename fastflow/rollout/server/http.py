"""What the clients of the sampler's servers and of the judge share: the key, pauses, and the words of a refusal."""

from __future__ import annotations

import asyncio
import os
import random
from types import ModuleType
from typing import TYPE_CHECKING

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
MOST_WORDS = 300  # characters that are kept of a refusal


class Backoff:
    """Pauses that double up to `longest` seconds, each shortened at random so that clients do not retry together."""

    def __init__(self, first: float = 0.25, longest: float = 15.0):
        self._first = self._next = first
        self._longest = longest

    def reset(self) -> None:
        self._next = self._first

    def seconds(self) -> float:
        """Return the next pause."""
        now, self._next = self._next, min(2 * self._next, self._longest)
        return now * random.uniform(0.5, 1.0)  # noqa: S311, a wait and no secret

    async def pause(self) -> None:
        await asyncio.sleep(self.seconds())


def read_key(variable: str) -> str:
    """Read a server's key from the environment; empty where there is none. Raises FastflowError for what is no key."""
    key = os.environ.get(variable, "")
    if not key.isprintable() or not key.isascii():
        raise FastflowError(f"the environment variable {variable} holds characters that no key has; set it anew")
    return key


def headers_for(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def errors_of(package: ModuleType) -> tuple[type[Exception], ...]:
    """Return the errors of httpx after which another attempt may help: no connection, or a garbled answer."""
    return package.TransportError, package.DecodingError


def words_of(answer: httpx.Response) -> str:
    """Return in one line what a server says about a request that it does not answer."""
    try:
        said = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return " ".join(said.split())[:MOST_WORDS] or answer.reason_phrase
