"""How fast a run goes, from its last steps, and when it ends at that pace."""

from __future__ import annotations

import time
from collections import deque

RECENT = 20  # steps that the pace is taken from


class Pace:
    """steps: of the whole run. after: those that are done when it begins."""

    def __init__(self, steps: int, after: int = 0):
        self._steps = steps
        self._ends = deque([(after, time.monotonic())], maxlen=RECENT + 1)

    def step_done(self, step: int) -> None:
        self._ends.append((step, time.monotonic()))

    def seconds_left(self) -> float | None:
        """What the rest takes at the pace of the last steps; None before there is one."""
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        return None if last == first else round((self._steps - last) * (ended - began) / (last - first), 1)


def duration(seconds: float) -> str:
    """Write a duration for people.

    >>> duration(59.6), duration(4000), duration(200_000)
    ('0:01:00', '1:06:40', '2 d 7:33:20')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"
