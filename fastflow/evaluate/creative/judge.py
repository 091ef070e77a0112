"""A judge: asks many questions at once, reads the replies, asks once more where one cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.evaluate.creative.client import ChatClient, Refused
from fastflow.evaluate.creative.questions import REMINDER, Messages
from fastflow.evaluate.creative.reply_log import ReplyLog
from fastflow.evaluate.creative.settings import JudgeConfig
from fastflow.evaluate.keys import key_of

QUOTED = 2000  # characters of an unreadable reply that are shown to the judge again
HOPELESS = 20  # refused requests without one that was answered
AWAKE_SECONDS = 0.5
GREETING = "Are you there? Answer yes."


@dataclass(frozen=True)
class Ask:
    """One question. read: what a reply says, None where it says nothing. vote: the number of the asking. about: which
    prompt and sample it judges.
    """

    messages: Messages
    read: Callable[[str], Any]
    vote: int = 0
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cost:
    """What the answers took, whether now or earlier. new: requests of this run. ungraded: asks without an answer."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    new: int = 0
    ungraded: int = 0

    def as_json(self) -> dict[str, int]:
        """The cost in the results, which are the same after a killed evaluation went on."""
        names = ("requests", "prompt_tokens", "completion_tokens", "ungraded")
        return {name: getattr(self, name) for name in names}


async def _stay_awake() -> None:
    """Wake the loop often: a signal that comes just before it begins to wait would be heard only at the next reply."""
    while True:
        await asyncio.sleep(AWAKE_SECONDS)


class JudgeModel:
    """Asks the server of the settings. model: the judging model, asked from the server where the settings name none."""

    def __init__(self, settings: JudgeConfig):
        self.settings = settings
        self.model = settings.model or asyncio.run(self._only_model())

    def ask(
        self, asks: Sequence[Ask], replies: ReplyLog, on_answer: Callable[[], None] = lambda: None
    ) -> tuple[list[Any], Cost]:
        """Return what each reply says, in order, None for those that cannot be had or read; and the cost.

        Replies are kept as they come. on_answer: called after each ask. Raises FastflowError where the server fails for
        good, or refuses everything.
        """
        cost = Cost()
        return asyncio.run(self._ask_all(asks, replies, cost, on_answer)), cost

    def greet(self) -> None:
        """Ask for a few words, which are not kept. Raises FastflowError where the server would answer no question."""
        try:
            asyncio.run(self._greet())
        except Refused as error:
            raise FastflowError(
                f"the judge at {self.settings.address} refused a first short request; it {error}; check judge.model, "
                "judge.temperature and judge.extra"
            ) from error

    async def _greet(self) -> None:
        async with ChatClient(self.settings) as client:
            await client.complete(self._body([{"role": "user", "content": GREETING}], vote=0))

    def _body(self, messages: Messages, vote: int) -> dict[str, Any]:
        return {
            "model": self.model, "messages": messages, "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens, "seed": vote, **(self.settings.extra or {}),
        }  # fmt: skip

    async def _only_model(self) -> str:
        async with ChatClient(self.settings) as client:
            return await client.only_model()

    async def _ask_all(
        self, asks: Sequence[Ask], replies: ReplyLog, cost: Cost, on_answer: Callable[[], None]
    ) -> list[Any]:
        values: list[Any] = [None] * len(asks)
        refusals: list[str] = []
        waiting = iter(enumerate(asks))

        async def work(client: ChatClient, waiting: Iterator[tuple[int, Ask]]) -> None:
            for place, ask in waiting:
                try:
                    values[place] = await self._answer(client, ask, replies, cost)
                except Refused as error:
                    refusals.append(str(error))
                    if len(refusals) >= HOPELESS and not cost.requests:
                        break
                on_answer()

        async with ChatClient(self.settings) as client:
            workers = [asyncio.create_task(work(client, waiting)) for _ in range(self.settings.concurrency)]
            tasks = [*workers, asyncio.create_task(_stay_awake())]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if refusals and not cost.requests:
            raise FastflowError(
                f"the judge at {self.settings.address} refused {counted(len(refusals), 'request')} and answered "
                f"none; it {refusals[0]}; change judge.max_tokens or judge.extra, or name a judge with a longer context"
            )
        cost.ungraded = sum(value is None for value in values)
        return values

    async def _answer(self, client: ChatClient, ask: Ask, replies: ReplyLog, cost: Cost) -> Any:
        messages = ask.messages
        for _ in range(2):
            body = self._body(messages, ask.vote)
            key = key_of(body)
            reply = replies.get(key)
            if reply is None:
                reply = await client.complete(body)
                cost.new += 1
                replies.add(key, {**ask.about, "vote": ask.vote}, reply, ask.read(reply.text))
            cost.requests += 1
            cost.prompt_tokens += reply.prompt_tokens
            cost.completion_tokens += reply.completion_tokens
            value = ask.read(reply.text)
            if value is not None:
                return value
            said = [{"role": "assistant", "content": reply.text[:QUOTED] or "(nothing)"}]
            messages = [*ask.messages, *said, {"role": "user", "content": REMINDER}]
        return None
