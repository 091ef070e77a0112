"""RUN/status.json: what a run is doing, for those who watch from outside. Readers see it whole, at any moment."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastflow import __version__
from fastflow.config.sections import EVALUATED
from fastflow.counted import counted
from fastflow.run.directory import STATUS_FILE
from fastflow.run.durable import overwrite_json, replace_json
from fastflow.run.evaluated import SECONDS, is_evaluated
from fastflow.run.pace import Pace


class StatusSink:
    """Rewrites the file at every step. steps: of the whole run. after: steps that are done when it begins. skipped:
    updates that were skipped in these. evaluates: see Pace.
    """

    def __init__(
        self,
        directory: Path,
        steps: int,
        after: int = 0,
        skipped: int = 0,
        evaluates: Callable[[int], bool] = lambda step: False,
    ):
        self._file, self._steps, self._step = directory / STATUS_FILE, steps, after
        self._alarms: list[str] = []
        self._skipped = skipped
        self._tokens_per_second: float | None = None
        self._pace = Pace(steps, after, evaluates=evaluates)
        self._evaluation: dict[str, Any] | None = None
        self._why_early: str | None = None
        self._is_done = False
        self._replace("running")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._step, self._alarms = step, metrics["alarms"]
        self._skipped = metrics["skipped_updates_total"]
        self._tokens_per_second = round(metrics["tokens"] / max(metrics["seconds"], 1e-9), 1)
        if is_evaluated(metrics):
            self._note_evaluation(step, metrics)
        self._pace.step_done(step)
        self._replace("running")

    def evaluating(self, step: int, what: str) -> None:
        self._replace("evaluating")

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        self._note_evaluation(0, metrics)
        self._replace("running")

    def stopped_early(self, why: str) -> None:
        self._why_early = why

    def done(self) -> None:
        self._is_done = True

    def close(self) -> None:
        self._replace("done" if self._is_done else "stopped")

    def _note_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        self._pace.evaluated(metrics[SECONDS])
        found = {name: value for name, value in metrics.items() if name.startswith(EVALUATED)}
        self._evaluation = {"step": step, **found}

    def _replace(self, phase: str) -> None:
        """Write the file anew, or over the old one where the disk is full. A disk that takes neither stops nothing."""
        content = {
            "phase": phase,
            "step": self._step,
            "steps": self._steps,
            "eta_seconds": self._pace.seconds_left() if self._why_early is None else 0.0,
            "tokens_per_second": self._tokens_per_second,
            "alarms": self._alarms,
            "skipped_updates": self._skipped,
            "evaluation": self._evaluation,
            "stopped_early": self._why_early,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        with contextlib.suppress(OSError):
            try:
                replace_json(self._file, content, lasting=False)
            except OSError:
                overwrite_json(self._file, content)


def describe_machine(device: torch.device) -> str:
    """Versions and hardware, for a run's first line."""
    import transformers

    hardware = f"{platform.machine()} with {counted(torch.get_num_threads(), 'thread')}"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return (
        f"fastflow {__version__}, python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, on {hardware}; process {os.getpid()} on {socket.gethostname()}"
    )
