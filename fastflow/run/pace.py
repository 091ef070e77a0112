"""How fast a run goes, from its last steps, and when it ends at that pace."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 20  # steps that the pace is taken from


class Pace:
    """steps: of the whole run. after: those that are done when it begins. evaluates: whether an evaluation follows
    a step; their time counts apart from that of the steps.
    """

    def __init__(self, steps: int, after: int = 0, *, evaluates: Callable[[int], bool] = lambda step: False):
        self._steps, self._evaluates = steps, evaluates
        self._ends = deque([(after, time.monotonic())], maxlen=RECENT + 1)
        self._spent = 0.0  # seconds in evaluations
        self._last_evaluation: float | None = None

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long; it comes before the end of its step."""
        self._spent += seconds
        self._last_evaluation = seconds

    def step_done(self, step: int) -> None:
        self._ends.append((step, time.monotonic() - self._spent))

    def seconds_left(self) -> float | None:
        """What the rest takes at the pace of the last steps and of the last evaluation; None before there is a step."""
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        if last == first:
            return None
        steps = (self._steps - last) * (ended - began) / (last - first)
        if self._last_evaluation is None:
            return round(steps, 1)
        evaluations = sum(map(self._evaluates, range(last + 1, self._steps + 1)))
        return round(steps + evaluations * self._last_evaluation, 1)


def in_words(seconds: float) -> str:
    """Write a duration in words.

    >>> in_words(8.4), in_words(95), in_words(4000)
    ('8 s', '1 min 35 s', '1 h 6 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def duration(seconds: float) -> str:
    """Write a duration as a clock shows it.

    >>> duration(59.6), duration(4000), duration(200_000)
    ('0:01:00', '1:06:40', '2 d 7:33:20')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"
