"""Runs on several ranks as processes: their output, their ranks, and whether these are gone."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from preloaded import Preloaded


def finish(process: subprocess.Popen | Preloaded, code: int = 0, seconds: float = 120) -> str:
    output, errors = process.communicate(timeout=seconds)
    assert process.returncode == code, (process.returncode, output, errors)
    assert "Traceback" not in errors, errors
    return output + errors


def ranks_of(launcher: subprocess.Popen | Preloaded) -> list[int]:
    """The processes that a launcher started as ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"fastflow" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlives its run"
        time.sleep(0.05)
