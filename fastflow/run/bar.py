"""How far a piece of work is: a bar on a terminal while it lasts, otherwise a line now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastflow.run.console import say

if TYPE_CHECKING:
    from rich.console import Console


class Bar:
    """A context manager that counts what is done. total: None where nobody knows it."""

    def __init__(self, console: Console, title: str, total: int | None):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console, self._last_line = console, time.monotonic()
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self._bar = self._bars.add_task(title, total=total)
        self.done = 0

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, count: int = 1) -> None:
        """Count what is done since the last call."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set how much is done."""
        self.done = done
        self._bars.update(self._bar, completed=done)

    def line(self, text: str, *, every: float = 0.0) -> None:
        """Say a line where there is no terminal. every: least seconds between the start or a line and the next."""
        now = time.monotonic()
        if not self._console.is_interactive and now - self._last_line >= every:
            self._last_line = now
            say(self._console, text)
