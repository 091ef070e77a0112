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
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastflow.errors import FastflowError
from fastflow.rollout.server.client import Busy, Unreachable
from fastflow.rollout.server.http import Backoff
from fastflow.rollout.server.server import Server

logger = logging.getLogger(__name__)

LOOKS_PER_SILENCE = 8
SHORTEST_LOOK = 0.05
HEAD_START = 2.0  # seconds
PROOF_ATTEMPTS = 3


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

    def warn(self, trouble: str) -> None:
        """Warn, once, of what befell a request."""
        if self.open and trouble not in self.told:
            logger.warning("%s; its requests go to whichever server answers", trouble)
            self.told.add(trouble)

    def doubt(self, trouble: str) -> None:
        self.warn(trouble)
        self.open = False
        self.trouble = trouble
        self.doubted.set()


class Round:
    """Hands jobs to servers until each has an answer.

    ask: gets the response of the job with this number from one server. make_ready, still_holds: the methods of Server,
    with the weights bound. max_sequences: maximum concurrent requests at one server. silence: seconds after which the
    round fails without a sign of life from any server. on_finished: called once for each response, in this thread.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        jobs: int,
        *,
        ask: Callable[[Server, int], Awaitable[Any]],
        make_ready: Callable[[Server], Awaitable[None]],
        still_holds: Callable[[Server], Awaitable[bool]],
        max_sequences: int,
        silence: float,
        on_finished: Callable[[], None],
    ):
        now = time.monotonic()
        self._lanes = [Lane(server, now) for server in servers]
        self._ask, self._make_ready, self._still_holds = ask, make_ready, still_holds
        self._max_sequences, self._silence = max_sequences, silence
        self._on_finished = on_finished
        self._waiting = deque(range(jobs))
        self._answers: dict[int, Any] = {}
        self._failed: dict[int, str] = {}  # how jobs without an answer failed last
        self._told: set[int] = set()  # jobs for which on_finished was called
        self._jobs = jobs
        self._started = now
        self._progress = now  # when any server last finished a response or was seen to generate
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
                if time.monotonic() - self._progress > self._silence:
                    raise self._all_silent()
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
            self._failed[job] = str(error)
        if isinstance(error, Busy):
            lane.warn(str(error))
            lane.resting = asyncio.get_running_loop().call_later(lane.backoff.seconds(), self._wake, lane)
        elif isinstance(error, Unreachable):
            lane.doubt(str(error))
        elif error is not None:
            self._failure = self._failure or error
        self._news.set()

    def _wake(self, lane: Lane) -> None:
        lane.resting = None
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

    def _all_silent(self) -> FastflowError:
        known = dict.fromkeys([*filter(None, (lane.trouble for lane in self._lanes)), *self._failed.values()])
        troubles = "; ".join(known or (f"{lane.server.address} is silent" for lane in self._lanes))
        return FastflowError(
            f"no server has made progress for {self._silence:g} seconds, with {self._jobs - len(self._answers)} of "
            f"{self._jobs} responses missing: {troubles}; check the servers, or raise rollout.silence if they were "
            "only slow"
        )
