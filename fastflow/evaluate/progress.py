"""How far an evaluation is: a bar of responses on a terminal, a line after each part elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastflow.counted import counted
from fastflow.interrupt import stopped
from fastflow.run.bar import Bar

if TYPE_CHECKING:
    from rich.console import Console


class Meter:
    """Counts responses while they are sampled, and prompts when their part is kept.

    advance: told of responses that a sampler has finished. kept: told of the prompts of a part that is on the disk.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._title, self._prompts, self._samples, self._kept = "", 0, 0, 0

    @contextmanager
    def measuring(self, title: str, *, prompts: int, samples: int) -> Iterator[None]:
        """Show one task. After a signal, raises RunStopped with how far it came."""
        self._title, self._prompts, self._samples, self._kept = title, prompts, samples, 0
        with (
            stopped(lambda: f"stopped at {title}, {self._progress} kept; the same command goes on from there"),
            Bar(self._console, title, prompts * samples) as self._bar,
        ):
            yield

    def advance(self, responses: int) -> None:
        """Some responses are finished, and not yet graded and kept."""
        if self._bar is not None:
            self._bar.advance(responses)

    def kept(self, prompts: int) -> None:
        """The responses to some prompts are on the disk, whether they were made now or earlier."""
        self._kept += prompts
        if self._bar is not None:
            self._bar.reach(self._kept * self._samples)
            self._bar.line(f"{self._title}: {self._progress}")

    @property
    def _progress(self) -> str:
        return f"{self._kept} of {counted(self._prompts, 'prompt')}"
