"""The files whose functions one call runs, in the order in which it first enters each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType


def entered_files(call: Callable[[], object], folders: Sequence[Path]) -> list[Path]:
    """Files under `folders` with a function that `call` runs, by their first one."""
    found: dict[Path, None] = {}
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code not in seen:
            seen.add(code)
            file = Path(code.co_filename)
            if any(file.is_relative_to(folder) for folder in folders):
                found.setdefault(file)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(found)
