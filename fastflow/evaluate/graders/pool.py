"""Grading in processes that can be killed: no answer costs more than its limits of time and memory.

A timer inside the process would not do: sympy spends its time in single calls that no signal handler interrupts, and
in big integers that swap the machine to death.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from fastflow.children import python_module, same_path
from fastflow.errors import FastflowError
from fastflow.evaluate.graders import gym
from fastflow.evaluate.graders.algebra import symbolic
from fastflow.evaluate.graders.grader import Item, with_gold_as_response
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.graders.worker import READY
from fastflow.models.pulse import PULSE

TIMEOUT = 5.0  # seconds an answer
MEMORY = 2 * 2**30  # bytes of address space a worker
STARTUP = 120.0  # seconds until a worker is ready, on a machine that is busy
AHEAD = 64  # items read from the input beyond those in work
LOOK = 5.0  # seconds between two looks at the workers, which say that this process waits within limits


class GraderPool:
    """Grades items in worker processes, which start with the first item.

    graders: of the items; raises FastflowError where math-verify for `math` or reasoning-gym for `gym` is missing.
    workers: processes. timeout: seconds that one item may take. memory: bytes that one worker may map. Items that hit a
    limit come back as timed_out, and their worker is replaced.
    """

    def __init__(self, graders: Collection[str], *, workers: int = 2, timeout: float = TIMEOUT, memory: int = MEMORY):
        required = {"math": symbolic.require, "gym": gym.require}
        loaded = [grader for grader in required if grader in graders]
        for grader in loaded:
            required[grader]()
        self._arguments = [str(memory), *loaded]
        self._timeout = timeout
        self._count = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def grade(self, items: Iterable[Item]) -> Iterator[Verdict]:
        """The verdict of each item, in order, as soon as it and those before it are there."""
        return (verdict for verdict, _ in self.judge(items))

    def judge(self, items: Iterable[Item]) -> Iterator[tuple[Verdict, str]]:
        """The same, each with the answer that the response gives; "" for none."""
        waiting = iter(enumerate(items))
        done: dict[int, tuple[Verdict, str]] = {}
        queue: deque[tuple[int, Item]] = deque()
        following, exhausted = 0, False
        for worker in [worker for worker in self._workers if worker.item is not None]:  # of a call that was given up
            worker.kill()
            self._workers.remove(worker)
        self._workers += [_Worker(self._arguments) for _ in range(self._count - len(self._workers))]
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            while True:
                while not exhausted and len(queue) + len(done) < AHEAD * self._count:
                    if (entry := next(waiting, None)) is None:
                        exhausted = True
                    else:
                        queue.append(entry)
                for worker in self._workers:
                    if worker.is_idle and queue:
                        worker.start(*queue.popleft(), self._timeout)
                if (
                    exhausted
                    and not queue
                    and not any(worker.item is not None for worker in self._workers)
                    and not done
                ):
                    return
                for position, result in self._next_results(selector):
                    done[position] = result
                while following in done:
                    yield done.pop(following)
                    following += 1

    def unequal_golds(self, items: Sequence[Item]) -> list[int]:
        """The places of items whose gold answer is not right as their own response, so that no response can be right.

        Equal gold answers are tried once.
        """
        answered = {(item.grader, item.gold): with_gold_as_response(item) for item in items}
        tried = {gold: item for gold, item in answered.items() if item is not None}
        verdicts = dict(zip(tried, self.grade(tried.values()), strict=True))
        return [
            place
            for place, item in enumerate(items)
            if verdicts.get((item.grader, item.gold), Verdict.RIGHT) is not Verdict.RIGHT
        ]

    def _next_results(self, selector: selectors.BaseSelector) -> Iterator[tuple[int, tuple[Verdict, str]]]:
        """What workers answer until the nearest deadline, and timed_out for those that passed theirs."""
        PULSE.attend()
        nearest = min(worker.deadline for worker in self._workers)
        for key, _ in selector.select(min(max(0.0, nearest - time.monotonic()), LOOK)):
            worker = key.data
            line = worker.read()
            if line is None:  # it died: of its memory limit, or of a library's own abort
                yield from self._replace(worker, selector)
            elif line == READY:
                worker.is_ready, worker.deadline = True, float("inf")
            elif line:
                verdict, answer = json.loads(line)
                yield worker.finish(), (Verdict(verdict), answer)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline <= now]:
            yield from self._replace(worker, selector)

    def _replace(self, worker: _Worker, selector: selectors.BaseSelector) -> Iterator[tuple[int, tuple[Verdict, str]]]:
        selector.unregister(worker.output)
        worker.kill()
        self._workers.remove(worker)
        if not worker.is_ready:
            raise FastflowError(
                f"a grading process ended before it was ready, or took over {STARTUP:.0f} seconds "
                f"({worker.complaint() or 'it said nothing'}); try fewer --workers"
            )
        fresh = _Worker(self._arguments)
        self._workers.append(fresh)
        selector.register(fresh.output, selectors.EVENT_READ, fresh)
        if worker.item is not None:
            yield worker.item, (Verdict.TIMED_OUT, "")


class _Worker:
    """One process. item: the position of what it grades, if anything. deadline: on the monotonic clock."""

    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603, our own module, and no shell
            python_module("fastflow.evaluate.graders.worker", *arguments),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=same_path(PYTHONUTF8="1"),
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self.output = self._process.stdout
        self.item: int | None = None
        self.is_ready = False
        self.deadline = time.monotonic() + STARTUP
        self._rest = b""

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.item is None

    def start(self, position: int, item: Item, timeout: float) -> None:
        """Hand over an item; its time begins."""
        self.item, self.deadline = position, time.monotonic() + timeout
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # a dead worker is found at its output
            self._process.stdin.write(json.dumps(item.as_message()).encode() + b"\n")
            self._process.stdin.flush()

    def finish(self) -> int:
        """The position of the item that is graded now."""
        position, self.item, self.deadline = self.item, None, float("inf")
        assert position is not None
        return position

    def read(self) -> str | None:
        """A line of the output, "" while there is none yet, None at its end."""
        data = os.read(self.output.fileno(), 4096)
        if not data:
            return None
        self._rest += data
        if not self._rest.endswith(b"\n"):
            return ""
        line, self._rest = self._rest.decode().strip(), b""
        return line

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        if self.is_ready:  # otherwise its complaint is still to be read
            assert self._process.stderr
            self._process.stderr.close()

    def complaint(self) -> str:
        """The last line that the process wrote to its error stream."""
        assert self._process.stderr
        with self._process.stderr as stream:
            lines = stream.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
