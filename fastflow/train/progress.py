"""Show the live progress of a run: one bar for the steps, one for the current rollout or update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console


class RunProgress:
    """A context manager around rich's Progress. It is silent where there is no terminal."""

    def __init__(self, console: Console, *, label: str, steps: int):
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        self._steps = self._bars.add_task(label, total=steps)
        self._phase = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int | None) -> None:
        """Begin an inner bar with a new name and total; None where nobody knows it."""
        self._bars.remove_task(self._phase)  # reset cannot take a total away
        self._phase = self._bars.add_task(f"  {name}", total=total)

    def advance_phase(self, count: int = 1) -> None:
        self._bars.advance(self._phase, count)

    def advance(self, count: int = 1) -> None:
        """Count finished steps."""
        self._bars.advance(self._steps, count)
