"""A console that falls silent, and ends nothing, when its terminal or pipe is gone."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console


class _SteadyStdout:
    """Whatever sys.stdout is at the moment, without its errors."""

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
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # rich stands in for it while it shows bars

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_console() -> Console:
    """A console on stdout for runs that nobody may be watching any more."""
    return Console(file=_SteadyStdout())
