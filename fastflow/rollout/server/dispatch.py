"""Run one round of sampling over several servers: each request is answered once, by any server that works.

A request goes to the open server with the fewest requests under way. A request that fails goes back to the front of the
queue with its seed. Its server is closed until it has shown its health and its weights; its other requests go on.
Answers count when their server shows afterwards that it still holds the weights; otherwise they are asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.rollout.server.client import Busy, Unreachable
from fastflow.rollout.server.http import Backoff
from fastflow.rollout.server.server import Server

logger = logging.getLogger(__name__)

LOOKS_PER_SILENCE = 8
SHORTEST_LOOK = 0.05
HEAD_START = 2.0  # seconds
PROOF_ATTEMPTS = 3
TOLD_AFTER = 0.25  # of the silence, when nothing moves
MOST_NAMED = 3  # prompts in a message


@dataclass
class Lane:
    """A server during a round.

    last_sign: when it last finished a response or was seen to generate. answered: its jobs since it last lost its
    weights, or since the round began. told: what was warned of.
    """

    server: Server
    last_sign: float
    open: bool = False
    tried: bool = False
    trouble: str = ""
    tokens: float | None = None
    look: asyncio.Task | None = None
    last_look: float = 0.0
    resting: asyncio.TimerHandle | None = None
    told: set[str] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    under_way: dict[asyncio.Task, int] = field(default_factory=dict)
    doubted: asyncio.Event = field(default_factory=asyncio.Event)
    backoff: Backoff = field(default_factory=Backoff)

    def is_free(self, max_sequences: int) -> bool:
        return self.open and self.resting is None and len(self.under_way) < max_sequences

    def warn(self, trouble: str, asked_for: str = "") -> None:
        """Warn, once, of what befell a request. asked_for: the name of its prompt."""
        if self.open and trouble not in self.told:
            prompt = f", asked for {asked_for}" if asked_for else ""
            logger.warning("%s%s; its requests go to whichever server answers", trouble, prompt)
            self.told.add(trouble)

    def rest(self, on_wake: Callable[[], None]) -> None:
        """Get no requests for a while. Of requests that are refused together, the first begins the rest."""

        def wake() -> None:
            self.resting = None
            on_wake()

        if self.resting is None:
            self.resting = asyncio.get_running_loop().call_later(self.backoff.seconds(), wake)

    def doubt(self, trouble: str, asked_for: str = "") -> None:
        self.warn(trouble, asked_for)
        self.open = False
        self.trouble = trouble
        self.doubted.set()


class Round:
    """Hands jobs to servers until each has an answer.

    ask: gets the response of the job with this number from one server. name_of: names a job's prompt in messages.
    make_ready, still_holds: the methods of Server, with the weights bound. max_sequences: maximum concurrent requests
    at one server. silence: seconds after which the round fails without a sign of life from any server. on_finished:
    called once for each response, in this thread.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        jobs: int,
        *,
        ask: Callable[[Server, int], Awaitable[Any]],
        name_of: Callable[[int], str],
        make_ready: Callable[[Server], Awaitable[None]],
        still_holds: Callable[[Server], Awaitable[bool]],
        max_sequences: int,
        silence: float,
        on_finished: Callable[[], None],
    ):
        now = time.monotonic()
        self._lanes = [Lane(server, now) for server in servers]
        self._ask, self._name_of = ask, name_of
        self._make_ready, self._still_holds = make_ready, still_holds
        self._max_sequences, self._silence = max_sequences, silence
        self._on_finished = on_finished
        self._waiting = deque(range(jobs))
        self._answers: dict[int, Any] = {}
        self._asked = Counter[int]()  # how often each job was asked for
        self._failed: dict[int, Unreachable] = {}  # how jobs without an answer failed last
        self._told: set[int] = set()  # jobs for which on_finished was called
        self._jobs = jobs
        self._started = now
        self._progress = now  # when any server last finished a response or was seen to generate
        self._told_of = 0.0  # the progress since which a standstill was told
        self._news = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> list[Any]:
        """Return the answers in the order of the jobs. Raises FastflowError when no server answers any more."""
        tending = [self._spawn(self._tend(lane)) for lane in self._lanes]
        for lane in self._lanes:
            lane.doubted.set()  # until it has shown its weights
        look = max(self._silence / LOOKS_PER_SILENCE, SHORTEST_LOOK)
        try:
            while len(self._answers) < self._jobs or not await self._all_proven():
                self._hand_out()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), min(look, HEAD_START))
                self._news.clear()
                if self._failure is not None:
                    raise self._failure
                self._look_for_signs(look)
                self._check_progress()
        finally:
            looks = (lane.look for lane in self._lanes if lane.look is not None)
            tasks = [*tending, *looks, *(task for lane in self._lanes for task in lane.under_way)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [self._answers[job] for job in range(self._jobs)]

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._notice)
        return task

    def _notice(self, task: asyncio.Task) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
        self._news.set()

    def _hand_out(self) -> None:
        if any(not lane.tried for lane in self._lanes) and time.monotonic() - self._started < HEAD_START:
            return  # the first server to show its weights must not take the share of another
        while self._waiting:
            free = [lane for lane in self._lanes if lane.is_free(self._max_sequences)]
            if not free:
                return
            lane = min(free, key=lambda lane: len(lane.under_way))
            job = self._waiting.popleft()
            self._asked[job] += 1
            if not lane.under_way:
                lane.last_sign = time.monotonic()  # it was idle before
            task = asyncio.ensure_future(self._ask(lane.server, job))
            lane.under_way[task] = job
            task.add_done_callback(functools.partial(self._settle, lane))

    def _settle(self, lane: Lane, task: asyncio.Task) -> None:
        """Take the answer, otherwise put the job back."""
        job = lane.under_way.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            self._answers[job] = task.result()
            self._failed.pop(job, None)
            lane.answered.add(job)
            lane.last_sign = self._progress = time.monotonic()
            lane.backoff.reset()
            if job not in self._told:
                self._told.add(job)
                self._on_finished()
        else:
            self._waiting.appendleft(job)
        if isinstance(error, Unreachable):
            self._failed[job] = error
        if isinstance(error, Busy):
            lane.warn(str(error), self._name_of(job))
            lane.rest(self._news.set)
        elif isinstance(error, Unreachable):
            lane.doubt(str(error), self._name_of(job))
        elif isinstance(error, FastflowError):
            remedy = f"or, if other prompts are answered, remove {self._name_of(job)}"
            self._failure = self._failure or FastflowError(f"{error}, {remedy}")
        elif error is not None:
            self._failure = self._failure or error
        self._news.set()

    async def _tend(self, lane: Lane) -> None:
        """Reopen the lane, each time it is in doubt, once its server holds the weights."""
        while True:
            await lane.doubted.wait()
            if lane.trouble:
                await lane.backoff.pause()
            try:
                if lane.answered and not await self._still_holds(lane.server):
                    await self._discard(lane)
                await self._make_ready(lane.server)
            except Unreachable as error:
                lane.trouble, lane.tried = str(error), True
                logger.debug("%s", error)
                self._news.set()
                continue
            lane.tokens = await lane.server.client.tokens_generated()
            lane.doubted.clear()
            lane.last_sign, lane.trouble = time.monotonic(), ""
            lane.open = lane.tried = True
            self._news.set()

    async def _all_proven(self) -> bool:
        """Put back what servers answered that have lost the weights by now. Returns whether all answers are left."""
        lanes = [lane for lane in self._lanes if lane.answered]
        proven = await asyncio.gather(*(self._is_proven(lane) for lane in lanes))
        for lane in [lane for lane, good in zip(lanes, proven, strict=True) if not good]:
            lane.doubt(lane.trouble or f"the server at {lane.server.address} has lost the weights")
            await self._discard(lane)
        return len(self._answers) == self._jobs

    async def _is_proven(self, lane: Lane) -> bool:
        backoff = Backoff()
        for attempt in range(PROOF_ATTEMPTS):
            if attempt:
                await backoff.pause()
            try:
                return await self._still_holds(lane.server)
            except Unreachable as error:
                trouble = str(error)
        lane.trouble = trouble
        return False

    async def _discard(self, lane: Lane) -> None:
        """Put back the jobs that this server answered, or still answers, with other weights."""
        under_way = list(lane.under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for job in lane.answered:
            del self._answers[job]
        self._waiting.extendleft(sorted(lane.answered, reverse=True))
        lane.answered.clear()

    def _look_for_signs(self, look: float) -> None:
        """Ask quiet servers whether they generate: a long response gives no sign until it ends."""
        for lane in self._lanes:
            looking = lane.look is not None and not lane.look.done()
            if lane.under_way and not looking and time.monotonic() - max(lane.last_sign, lane.last_look) > look:
                lane.last_look = time.monotonic()
                lane.look = self._spawn(self._look_at(lane))

    async def _look_at(self, lane: Lane) -> None:
        tokens = None
        with contextlib.suppress(asyncio.TimeoutError):
            left = self._silence - (time.monotonic() - lane.last_sign)
            tokens = await asyncio.wait_for(lane.server.client.tokens_generated(), max(left, 0.1))
        if tokens is not None and tokens != lane.tokens:
            lane.tokens = tokens
            lane.last_sign = self._progress = time.monotonic()
        elif lane.under_way and time.monotonic() - lane.last_sign > self._silence:
            lane.doubt(f"the server at {lane.server.address} has given no sign of life for {self._silence:g} seconds")
            for task in list(lane.under_way):
                task.cancel()

    def _check_progress(self) -> None:
        """Warn once of a standstill. Raises FastflowError when it has lasted for the silence."""
        still = time.monotonic() - self._progress
        if still > self._silence:
            raise self._all_silent()
        if still > TOLD_AFTER * self._silence and self._told_of != self._progress:
            self._told_of = self._progress
            logger.warning(
                "no server has made progress for %.3g seconds: %s; after %g (rollout.silence) it is an error",
                still, self._troubles(), self._silence,
            )  # fmt: skip

    def _all_silent(self) -> FastflowError:
        failures, ailing = self._failed.values(), any(lane.trouble for lane in self._lanes)
        advice = "check the servers, or raise rollout.silence if they were only slow"
        if failures and not ailing and all(isinstance(error, Busy) for error in failures):
            advice = "they are busy: lower rollout.max_sequences, leave them to this run, or raise rollout.silence"
        return FastflowError(
            f"no server has made progress for {self._silence:g} seconds, with {self._jobs - len(self._answers)} of "
            f"{self._jobs} responses missing: {self._troubles()}; {self._in_vain()}{advice}"
        )

    def _troubles(self) -> str:
        known = [*filter(None, (lane.trouble for lane in self._lanes)), *map(str, self._failed.values())]
        return "; ".join(dict.fromkeys(known or [f"{lane.server.address} is silent" for lane in self._lanes]))

    def _in_vain(self) -> str:
        """Name the prompts that were asked most often without an answer."""
        jobs = [job for job, _ in self._asked.most_common() if job not in self._answers]
        names = list(dict.fromkeys(map(self._name_of, jobs)))
        if not names:
            return ""
        more = f" and {counted(len(names) - MOST_NAMED, 'other')}" if len(names) > MOST_NAMED else ""
        return f"without an answer, those asked most often first: {', '.join(names[:MOST_NAMED])}{more}; "
