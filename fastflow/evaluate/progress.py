"""How far an evaluation is: a bar of responses on a terminal, a line after each part elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastflow.counted import counted
from fastflow.interrupt import RunStopped
from fastflow.run.console import say

if TYPE_CHECKING:
    from rich.console import Console


class Meter:
    """Counts responses while they are sampled, and prompts when their part is kept.

    advance: told of responses that a sampler has finished. kept: told of the prompts of a part that is on the disk.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._bars.add_task("evaluating")
        self._title, self._prompts, self._samples, self._kept, self._finished = "", 0, 0, 0, 0

    @contextmanager
    def measuring(self, title: str, *, prompts: int, samples: int) -> Iterator[None]:
        """Show one task. After a signal, raises RunStopped with how far it came."""
        self._title, self._prompts, self._samples, self._kept, self._finished = title, prompts, samples, 0, 0
        self._bars.reset(self._bar, total=prompts * samples, description=title)
        try:
            with self._bars:
                yield
        except KeyboardInterrupt as stop:
            raise RunStopped(
                f"stopped at {title}, {self._kept} of {counted(prompts, 'prompt')} kept; the same command goes on "
                "from there",
                stop,
            ) from stop

    def advance(self, responses: int) -> None:
        """Some responses are finished, and not yet graded and kept."""
        self._finished += responses
        self._bars.update(self._bar, completed=self._finished)

    def kept(self, prompts: int) -> None:
        """The responses to some prompts are on the disk, whether they were made now or earlier."""
        self._kept += prompts
        self._finished = self._kept * self._samples
        self._bars.update(self._bar, completed=self._finished)
        if not self._console.is_terminal:
            say(self._console, f"{self._title}: {self._kept} of {counted(self._prompts, 'prompt')}")
