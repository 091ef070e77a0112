"""Replace directories together, and only when all of their successors are complete.

    RUN/save.new/       successors that are being written
    RUN/save.ready/     the same, complete: from now on they count
    RUN/policy.old/     what a successor replaces, until the successor has its name

If the process ends in between, `recover` finishes or drops the successors by these names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from fastflow.interrupt import deferred_interrupt

STAGING, READY, OLD = "save.new", "save.ready", ".old"


def begin(directory: Path) -> Path:
    """Create the empty directory for successors. Each is written into it under its name."""
    staging = directory / STAGING
    discard(directory)
    staging.mkdir(parents=True)
    return staging


def discard(directory: Path) -> None:
    """Drop successors that are not complete."""
    shutil.rmtree(directory / STAGING, ignore_errors=True)


def commit(directory: Path) -> None:
    """Put all successors in place. Raises OSError, and changes nothing, where the disk does not take them."""
    flush(directory / STAGING)
    with deferred_interrupt():
        _finish(directory)
        (directory / STAGING).rename(directory / READY)
        _finish(directory)


def recover(directory: Path, names: Iterable[str]) -> None:
    """Finish a swap that a dead process had made ready, and drop one that it had not. names: of all directories."""
    with deferred_interrupt():
        _finish(directory)
        discard(directory)
        for name in names:
            target, old = directory / name, directory / (name + OLD)
            if old.is_dir() and not target.exists():
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)


def _finish(directory: Path) -> None:
    ready = directory / READY
    if not ready.is_dir():
        return
    for successor in sorted(ready.iterdir()):
        target = directory / successor.name
        old = target.with_name(target.name + OLD)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        successor.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    ready.rmdir()


def flush(directory: Path) -> None:
    """Make the disk take every file: a full disk or a quota may show only here. Raises OSError."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
