"""Files that outlast a power cut, and that other users may read as the umask says."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

from fastflow.models.pulse import PULSE
from fastflow.run.json_text import json_text

FRESH = ".new"  # at the end of a name: not complete yet
PIECE = 2**28  # bytes that are waited for at once: a slow disk takes seconds for them
_WRITTEN = 7  # of sync_file_range: whatever was begun, then these pages, and their end
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
    """Have the disk take one file, piece by piece where it is large, so that others see it move. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for start in range(0, os.fstat(descriptor).st_size - PIECE, PIECE):
            _begin_with(descriptor, start)
            PULSE.work()
        os.fsync(descriptor)
        PULSE.work()
    finally:
        os.close(descriptor)


def flush_directory(directory: Path) -> None:
    """Have the disk take the names in a directory: what was made, renamed and removed there."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a small file that readers see whole, the old or the new, whatever happens in between. Raises OSError, and
    leaves the old one alone there.

    lasting: also after a power cut, for which the disk is waited for.
    """
    fresh = path.with_name(path.name + FRESH)
    try:
        fresh.write_text(text, encoding="utf-8")
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if not lasting:
        fresh.replace(path)
        return
    flush_file(fresh)
    fresh.replace(path)
    flush_directory(path.parent)


def replace_json(path: Path, tree: Any, *, lasting: bool = True) -> None:
    """Write a file of JSON as `replace_text` does."""
    replace_text(path, json_text(tree), lasting=lasting)


def overwrite_json(path: Path, tree: Any) -> None:
    """Write over a file of JSON, which a full disk takes too: blanks fill what is left of the old one. Raises OSError.

    Readers see it whole but for a moment.
    """
    content = json_text(tree).encode()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b" " * (len(content) - size))
        file.flush()  # where the disk has no room for more, the old content stays
        file.seek(0)
        file.write(content.ljust(size))


def _begin_with(descriptor: int, start: int) -> None:
    """Have the disk take one piece of a file, where the system can; the whole is taken by fsync later. Raises OSError,
    which fsync would not report a second time.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None, use_errno=True)
    take = getattr(library, "sync_file_range", None)
    if take is None:
        return
    place, size = ctypes.c_int64(start), ctypes.c_int64(PIECE)
    if take(ctypes.c_int(descriptor), place, size, ctypes.c_uint(_WRITTEN)) != 0:
        number = ctypes.get_errno()
        if number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number))
