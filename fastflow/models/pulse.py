"""How far this process has come, for the other ranks' watch (train/ranks/watch.py).

All ranks enter the same collectives in the same order. So the count of those that a rank has entered says who is
behind, and a count that does not change says that the rank stands still.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Pulse:
    """place: collectives, and layers of cut models, that were entered. steps: of the run that this process began.
    is_patient: whether it does something that shows no progress and may take minutes. attended: signs of work that
    enters no collective: looks at an engine, which has limits of its own (rollout.startup, rollout.silence), tensors
    that were loaded, pieces of files.
    """

    def __init__(self) -> None:
        self.place = 0
        self.steps = 0
        self.is_patient = False
        self.attended = 0

    def beat(self, *_: object) -> None:
        """Count a place that all ranks come to. Takes what a hook of a module is given."""
        self.place += 1

    def attend(self) -> None:
        """Count a look at an engine, whose own limits say when the wait for it is too long."""
        self.attended += 1

    def work(self, *_: object) -> None:
        """Count a piece of work that needs no other rank, such as a tensor loaded or a piece of a file. Any thread may
        do so.
        """
        self.attended += 1

    def begin_step(self) -> None:
        self.steps += 1

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Mark work of the main thread that shows no progress for minutes."""
        before, self.is_patient = self.is_patient, True
        try:
            yield
        finally:
            self.is_patient = before


PULSE = Pulse()  # of this process


class Beating(list[Item]):
    """A list of which each entry counts as a piece of work when it is read, for what takes long over many."""

    def __iter__(self) -> Iterator[Item]:
        for item in super().__iter__():
            PULSE.work()
            yield item
