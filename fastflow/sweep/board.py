"""Shows how a sweep stands: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fastflow.counted import counted
from fastflow.run.console import say
from fastflow.run.directory import STATUS_FILE
from fastflow.run.pace import in_words
from fastflow.sweep.runs import Run
from fastflow.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Board:
    """Counts runs and steps, and tells when all are likely done. done: runs that are done already."""

    def __init__(self, console: Console, runs: Sequence[Run], done: Sequence[Run]):
        self._console, self._count = console, len(runs)
        self._steps = {run.name: run.config.run.steps if run in done else steps_done(run) for run in runs}
        self._total, self._first = sum(run.config.run.steps for run in runs), sum(self._steps.values())
        self._over, self._begun = len(done), time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            console=console, disable=not console.is_interactive,
        )  # fmt: skip
        self._all = self._bars.add_task("all steps", total=self._total, completed=self._first, note="")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Board:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, run: Run) -> None:
        """Tell that a run begins, or goes on."""
        steps, at = run.config.run.steps, steps_done(run)
        self._tasks[run.name] = self._bars.add_task(visible(run.name), total=steps, completed=at, note="")
        after = f", goes on after step {at} of {steps}" if at else f", {counted(steps, 'step')}"
        say(self._console, f"{run.name}: started{after}")

    def refresh(self, running: Sequence[Run]) -> None:
        """Read how far the runs are."""
        for run in running:
            self._steps[run.name] = steps_done(run)
            if run.name in self._tasks:
                self._bars.update(self._tasks[run.name], completed=self._steps[run.name])
        self._bars.update(self._all, completed=sum(self._steps.values()), note=self.outlook())

    def ended(self, run: Run, seconds: float) -> None:
        """Tell that a run is done."""
        self._steps[run.name] = run.config.run.steps
        self._close(run)
        say(
            self._console,
            f"{run.name}: done in {seconds:.0f} s; {self._over} of {counted(self._count, 'run')}; {self.outlook()}",
        )

    def failed(self, run: Run, reason: str) -> None:
        """Tell that a run failed. Its remaining steps no longer count."""
        self._total -= run.config.run.steps - self._steps[run.name]
        self._close(run)
        say(self._console, f"{run.name}: failed: {reason}")

    def outlook(self) -> str:
        """Return what the rest takes at the pace since the start."""
        done = sum(self._steps.values())
        if done >= self._total:
            return "all steps done"
        if done == self._first:
            return "the time left is not known yet"
        left = (self._total - done) * (time.monotonic() - self._begun) / (done - self._first)
        return f"about {in_words(left)} left"

    def _close(self, run: Run) -> None:
        self._over += 1
        if run.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(run.name))
        self._bars.update(self._all, completed=sum(self._steps.values()), total=self._total, note=self.outlook())


def steps_done(run: Run) -> int:
    """Return the steps that a run's status file tells; 0 without one."""
    try:
        step = json.loads((run.directory / STATUS_FILE).read_text(encoding="utf-8"))["step"]
        return min(int(step), run.config.run.steps)
    except (OSError, ValueError, TypeError, KeyError):
        return 0
