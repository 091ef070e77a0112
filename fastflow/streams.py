"""Opens standard streams that a process was started without, leaves those that are gone, and prints in any encoding."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_missing_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr an empty one: otherwise a file that is opened
    first would take its place, and what is printed would land in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def print_in_any_encoding() -> None:
    """Have stdout show a character that its encoding lacks as \\xNN, as stderr does: a run must not end with it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # of a stream whose file has become a pipe behind its back
            sys.stdout.reconfigure(errors="backslashreplace")


def leave_dead_streams() -> None:
    """Drop output that a closed terminal or pipe did not take. Flushed at the end, it would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
