"""RUN/status.json: what a run is doing, for those who watch from outside. Readers see it whole, at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

import torch

from fastflow import __version__
from fastflow.run.directory import STATUS_FILE
from fastflow.run.durable import FRESH
from fastflow.run.pace import Pace


class StatusSink:
    """Rewrites the file at every step. steps: of the whole run. after: steps that are done when it begins. skipped:
    updates that were skipped in these.
    """

    def __init__(self, directory: Path, steps: int, after: int = 0, skipped: int = 0):
        self._file, self._steps, self._step = directory / STATUS_FILE, steps, after
        self._alarms: list[str] = []
        self._skipped = skipped
        self._tokens_per_second: float | None = None
        self._pace = Pace(steps, after)
        self._replace("running")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._step, self._alarms = step, metrics["alarms"]
        self._skipped = metrics["skipped_updates_total"]
        self._tokens_per_second = round(metrics["tokens"] / max(metrics["seconds"], 1e-9), 1)
        self._pace.step_done(step)
        self._replace("running")

    def close(self) -> None:
        self._replace("done" if self._step >= self._steps else "stopped")

    def _replace(self, phase: str) -> None:
        """A disk that does not take it stops nothing."""
        content = {
            "phase": phase,
            "step": self._step,
            "steps": self._steps,
            "eta_seconds": self._pace.seconds_left(),
            "tokens_per_second": self._tokens_per_second,
            "alarms": self._alarms,
            "skipped_updates": self._skipped,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        fresh = self._file.with_name(STATUS_FILE + FRESH)
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
            fresh.replace(self._file)


def describe_machine(device: torch.device) -> str:
    """Versions and hardware, for a run's first line."""
    import transformers

    hardware = f"{platform.machine()} with {torch.get_num_threads()} threads"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return (
        f"fastflow {__version__}, python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, on {hardware}; process {os.getpid()} on {socket.gethostname()}"
    )
