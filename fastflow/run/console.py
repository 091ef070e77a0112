"""Make a console that goes silent, and stops no run, when its terminal or pipe is gone; say what stays text on it.

`is_interactive` says whether it is a terminal that draws bars. Elsewhere, as in a log file, a text stays on one line.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import IO, Any, cast

from rich.console import Console

from fastflow.visible import visible

NO_BREAK = "\N{NO-BREAK SPACE}"


class _SteadyStdout:
    """The current sys.stdout, without its errors."""

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            return

    @property
    def _stream(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # while rich shows bars, sys.stdout is its proxy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _TextConsole(Console):
    """Prints texts as texts: control characters in them, as a model or a file may hold, reach no terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(entry, str) for entry in objects):
            options.setdefault("soft_wrap", not self.is_interactive)
        super().print(*(visible(entry) if isinstance(entry, str) else entry for entry in objects), **options)


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a text as it stands: its brackets are no markup, no number gets a colour, and a line is never broken."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_fields(console: Console, text: str) -> None:
    """Say fields that two spaces separate, on one line; a narrow terminal breaks it between them."""
    if console.is_interactive:
        whole = re.sub(r"(?<=\S) (?=\S)", NO_BREAK, text)
        broken = textwrap.fill(whole, console.width, subsequent_indent="    ", break_on_hyphens=False)
        text = broken.replace(NO_BREAK, " ")
    say(console, text)


def make_console(*, quiet: bool = False) -> Console:
    """Return a console on stdout for a run that may outlive its terminal."""
    console = _TextConsole(file=cast("IO[str]", _SteadyStdout()), quiet=quiet)  # it passes all other attributes on
    console.is_interactive = console.is_interactive and console.file.isatty()  # FORCE_COLOR gives a file colours alone
    return console
