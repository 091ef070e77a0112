"""Interleaved timing: one call of every provider a round, rounds rotated, warm-up left out."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from bench.ops import Step
from bench.problem import Problem

FEWEST_ROUNDS = 3
HEAD_START_CYCLES = 10_000_000  # of the device's clock, 5 to 7 ms


class Summary(NamedTuple):
    """Median and spread of the timed calls, in seconds."""

    median: float
    low: float  # first and third quartile
    high: float
    fastest: float
    count: int


def summarise(seconds: list[float]) -> Summary:
    """
    >>> summarise([3.0, 1.0, 2.0])
    Summary(median=2.0, low=1.5, high=2.5, fastest=1.0, count=3)
    """
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (seconds[0],) * 3
    return Summary(statistics.median(seconds), low, high, min(seconds), len(seconds))


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Time of one call: the wall clock's, or on CUDA that between two events.

    The CUDA device is kept busy for some milliseconds first. In them the host prepares the call's first kernels, as it
    does in training, where the device has work from before; a call that waits for the device gains nothing by it.
    """
    if device != "cuda":
        start = time.perf_counter()
        result = call()  # kept until the clock has stopped
        seconds = time.perf_counter() - start
        del result
        return seconds
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(HEAD_START_CYCLES)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def rounds(names: list[str]) -> Iterator[list[str]]:
    """Each round starts one further, so that no provider always runs first.

    >>> list(itertools.islice(rounds(["a", "b", "c"]), 2))
    [['a', 'b', 'c'], ['b', 'c', 'a']]
    """
    for start in itertools.cycle(range(len(names))):
        yield names[start:] + names[:start]


def interleaved(
    steps: dict[str, Step],
    problems: list[Problem],
    device: str,
    *,
    repeats: int,
    seconds: float,
    before: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Times of every step, and the exceptions of those that failed.

    One untimed round, then `repeats` rounds, fewer where they would take longer than `seconds` (but at least
    three). Neighbours in a round run on different problems.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    failed: dict[str, Exception] = {}
    deadline = time.monotonic() + seconds
    for number, order in zip(range(repeats + 1), rounds(list(steps)), strict=False):
        if number > FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        for place, name in enumerate(order):
            if name in failed:
                continue
            before(name)
            problem = problems[(number + place) % len(problems)]
            try:
                elapsed = seconds_of(lambda: steps[name](problem), device)  # noqa: B023 (called at once)
            except Exception as error:
                failed[name] = error.with_traceback(None)  # which would keep its tensors
                continue
            if number:
                times[name].append(elapsed)
    return times, failed
