"""How far this process has come, for the other ranks' watch (train/watch.py).

All ranks enter the same collectives in the same order. So the count of those that a rank has entered says who is
behind, and a count that does not change says that the rank stands still.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Pulse:
    """place: collectives, and layers of cut models, that were entered. steps: of the run that this process began.
    is_patient: whether it waits for a disk, or does something else that may take long. attended: looks at an engine
    that it waits for, which has limits of its own (rollout.startup, rollout.silence).
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

    def begin_step(self) -> None:
        self.steps += 1

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Mark work of the main thread that may stand still for minutes."""
        before, self.is_patient = self.is_patient, True
        try:
            yield
        finally:
            self.is_patient = before


PULSE = Pulse()  # of this process
