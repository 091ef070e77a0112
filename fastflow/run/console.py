"""Make a console that goes silent, and stops no run, when its terminal or pipe is gone; say what stays text on it."""

from __future__ import annotations

import sys
from typing import IO, Any, cast

from rich.console import Console

from fastflow.visible import visible


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
        super().print(*(visible(entry) if isinstance(entry, str) else entry for entry in objects), **options)


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a text as it stands: its brackets are no markup, no number gets a colour, and a line is never broken."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def make_console(*, quiet: bool = False) -> Console:
    """Return a console on stdout for a run that may outlive its terminal."""
    return _TextConsole(file=cast("IO[str]", _SteadyStdout()), quiet=quiet)  # it passes all other attributes on
