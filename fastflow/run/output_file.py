"""Check at the start of a command that it can write its file, and report a failing disk in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastflow.errors import FastflowError
from fastflow.run.json_text import json_text


def writable(path: Path) -> Path:
    """Refuse a `--json` file that cannot be written, before the work starts. Creates no file. Returns the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise FastflowError(f"--json {path} cannot be written: {error.strerror}; choose another file") from error
    return path


def write_json(path: Path, tree: Any) -> None:
    """Write a `--json` file. Raises FastflowError where it cannot be written."""
    with writing(path):
        path.write_text(json_text(tree), encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, and each other OSError or SafetensorError of the block, into one sentence about the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FastflowError(f"cannot write to {path} ({reason}); make room there or choose another place") from error
