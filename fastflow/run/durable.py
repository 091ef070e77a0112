"""Files that outlast a power cut, and that other users may read as the umask says."""

from __future__ import annotations

import os
from pathlib import Path

FRESH = ".new"  # at the end of a name: not complete yet
_UMASK = os.umask(0o077)  # can only be read by being set: once, while nothing else runs
os.umask(_UMASK)


def flush(directory: Path) -> None:
    """Have the disk take every file and directory of a tree; a full one or a quota may show itself only here.

    Files get the mode that the umask leaves of 0666, where their writer was stricter. Raises OSError.
    """
    for parent, _, files in os.walk(directory):
        for name in files:
            path = Path(parent, name)
            path.chmod(0o666 & ~_UMASK)
            flush_file(path)
        flush_directory(Path(parent))


def publish_file(fresh: Path, path: Path) -> None:
    """Give a file that is complete its name, once the disk has it. Raises OSError."""
    fresh.chmod(0o666 & ~_UMASK)
    flush_file(fresh)
    fresh.replace(path)
    flush_directory(path.parent)


def flush_file(path: Path) -> None:
    """Have the disk take one file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(directory: Path) -> None:
    """Have the disk take the names in a directory: what was made, renamed and removed there."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a small file that readers see whole, the old or the new, whatever happens in between."""
    fresh = path.with_name(path.name + FRESH)
    fresh.write_text(text, encoding="utf-8")
    flush_file(fresh)
    fresh.replace(path)
    flush_directory(path.parent)
