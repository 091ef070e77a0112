"""Show the doctor's findings as a table, as a sentence and as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check
from fastflow.run.console import say

STYLES = {OK: "green", MISSING: "dim", BROKEN: "bold red", NOTE: "yellow"}


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows which check runs, on stderr: a spinner on a terminal, otherwise lines."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda name: console.print(f"checking {name}", highlight=False)
        return
    with console.status("") as status:
        yield lambda name: status.update(f"checking {escape(name)}")


def print_checks(console: Console, checks: list[Check]) -> None:
    """Print the table, the remedies one a line so that commands can be copied, and the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("check", "state", "found"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    for check in checks:
        style = "bold red" if check.is_fault else STYLES[check.state]
        table.add_row(escape(check.name), f"[{style}]{check.state}", escape(check.found))
    console.print(table)
    todo = [check for check in checks if check.remedy]
    if todo:
        console.print("\nwhat to do, where you need it:")
        for check in sorted(todo, key=lambda check: not check.is_fault):
            say(console, f"  {check.name}: {check.remedy}", style="red" if check.is_fault else None)
    console.print(verdict(checks), style="bold red" if any(check.is_fault for check in checks) else "green")


def verdict(checks: list[Check]) -> str:
    """Name the checks that failed; without any, say that fastflow works here."""
    faults = [check.name for check in checks if check.is_fault]
    return f"broken or missing: {', '.join(faults)}" if faults else "everything that is required works"


def as_json(checks: list[Check]) -> dict[str, Any]:
    return {
        "checks": [asdict(check) for check in checks],
        "healthy": not any(check.is_fault for check in checks),
    }
