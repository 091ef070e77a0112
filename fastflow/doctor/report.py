"""Write the doctor's findings as a text for a bug report, without private paths and names."""

from __future__ import annotations

import contextlib
import getpass
import platform
import re
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from fastflow import __version__
from fastflow.doctor.check import Check

PATH = re.compile(r"(?<![\w:/.])(?:~|/[\w.+\-@]+)(?:/[\w.+\-@]+)+/?")  # an absolute path of at least two parts


def as_report(checks: list[Check]) -> str:
    """Return Markdown: versions and system, and a line for each check. Only the last part of each path is left."""
    libc = " ".join(filter(None, platform.libc_ver())) or "another libc"
    place = "in a venv" if sys.prefix != sys.base_prefix else "in no venv"
    lines = [
        "```text",
        f"fastflow {__version__} on Python {platform.python_version()} {place}, {platform.system()} "
        f"{platform.machine()}, {libc}",
        *(f"{check.name}: {check.state}, {check.found}" for check in checks),
        "```",
    ]
    return without_privacy("\n".join(lines), _private_names())


def without_privacy(text: str, names: Iterable[str] = ()) -> str:
    """Cut absolute paths in the text to their last part, and remove these names.

    >>> without_privacy("loaded from /home/ada/venv/lib/_native.so by ada on box7", ["ada", "box7"])
    'loaded from <path>/_native.so by <name> on <name>'
    """
    text = PATH.sub(lambda found: f"<path>/{Path(found.group()).name}", text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text)
    return text


def _private_names() -> list[str]:
    """Return the names of the user and of this machine, without names that every machine has."""
    names = {socket.gethostname(), Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a password entry
        names.add(getpass.getuser())
    return sorted(name for name in names - {"", "root", "localhost", "user"} if len(name) > 2)
