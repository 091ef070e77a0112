"""A file that a command writes at its end, asked about at its beginning."""

from __future__ import annotations

from pathlib import Path

from fastflow.errors import FastflowError


def writable(path: Path) -> Path:
    """Refuse before the work a `--json` file that cannot be written; leaves none where there was none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise FastflowError(f"--json {path} cannot be written: {error.strerror}; choose another file") from error
    return path
