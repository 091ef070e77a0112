"""Carries out the runs of a sweep: `fastflow train` in a process of its own for each, some at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastflow.children import python_module, same_path
from fastflow.config.reader import to_yaml
from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.interrupt import deferred_interrupt, tell
from fastflow.machine import cores
from fastflow.run.lock import RunLock
from fastflow.run.output_file import writing
from fastflow.sweep.board import Board
from fastflow.sweep.ledger import Ledger
from fastflow.sweep.machine import group_of, share_of, visible_gpus
from fastflow.sweep.request import SweepRequest
from fastflow.sweep.runs import Run

SETTINGS, LOGS = "settings", "logs"
POLL_SECONDS = 0.2
LONGEST_SAVE = 120.0  # seconds that a run of a killed sweep may still take to save
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


@dataclass
class Job:
    """A run that goes on. log_start: bytes of its log before it began."""

    run: Run
    process: subprocess.Popen[bytes]
    slot: int
    log: Path
    log_start: int
    began: float


class Runner:
    """Starts what is not done, waits, and ends its processes whatever happens; they save first.

    after: called for each run that is done, also of an earlier sweep.
    """

    def __init__(self, request: SweepRequest, board: Board, ledger: Ledger, after: Callable[[Run], None] | None = None):
        self._request, self._board, self._ledger = request, board, ledger
        self._after = after or (lambda run: None)
        self._jobs: list[Job] = []
        self._patience: dict[str, float] = {}  # until when an earlier process may still save a run, by its name
        self._gpus = visible_gpus() if request.jobs > 1 else []
        self.failed: dict[str, str] = {}  # why, by the name of the run

    def run(self) -> None:
        """Carry out all runs. A run that fails is noted in `failed`, and the others go on."""
        waiting = deque[Run]()
        for run in self._request.runs:
            if self._ledger.is_done(run):
                self._after(run)
            else:
                waiting.append(run)
        try:
            while waiting or self._jobs:
                while len(self._jobs) < self._request.jobs and (free := self._first_free(waiting)):
                    waiting.remove(free)
                    self._start(free)
                time.sleep(POLL_SECONDS)
                self._board.refresh([job.run for job in self._jobs])
                for job in [job for job in self._jobs if job.process.poll() is not None]:
                    self._end(job)
        except KeyboardInterrupt as stop:
            self._stop(getattr(stop, "number", signal.SIGINT))
            raise
        except BaseException:
            self._stop(signal.SIGTERM)
            raise
        finally:
            self._kill()

    def _first_free(self, waiting: Iterable[Run]) -> Run | None:
        """Return the first run that no process of a killed sweep still saves. Raises FastflowError where that takes too
        long.
        """
        for run in waiting:
            try:
                if run.directory.exists():
                    RunLock(run.directory).release()
                return run
            except FastflowError:
                if time.monotonic() > self._patience.setdefault(run.name, time.monotonic() + LONGEST_SAVE):
                    raise
        return None

    def _start(self, run: Run) -> None:
        output = self._request.output
        settings, log = output / SETTINGS / f"{run.name}.yaml", output / LOGS / f"{run.name}.txt"
        with writing(output):
            for file in (settings, log):
                file.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(to_yaml(run.config), encoding="utf-8")
            log_file = log.open("ab")
        self._ledger.write(run, "running")
        slot = min(set(range(self._request.jobs)) - {job.slot for job in self._jobs})
        gpus = self._gpus if run.config.model.device in ("auto", "cuda") else []
        share = share_of(
            slot, jobs=self._request.jobs, devices=self._request.devices, cores=cores(), gpus=gpus, given=os.environ
        )
        with log_file, deferred_interrupt():  # a process that is started is also known
            start = log_file.tell()
            process = subprocess.Popen(  # noqa: S603
                child_command(settings, self._request.devices),
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT,
                env=same_path(**share, **group_of(output, os.environ)),
                start_new_session=True,  # Ctrl-C reaches it through this process alone
            )  # fmt: skip
            self._jobs.append(Job(run, process, slot, log, start, time.monotonic()))
        self._board.started(run)

    def _end(self, job: Job) -> None:
        """Note how a process ended."""
        self._jobs.remove(job)
        code, seconds = job.process.returncode, round(time.monotonic() - job.began, 1)
        if code == 0:
            self._ledger.write(job.run, "done", seconds=seconds)
            self._board.ended(job.run, seconds)
            self._after(job.run)
            return
        self.failed[job.run.name] = reason = _reason(code, job)
        self._ledger.write(job.run, "failed", seconds=seconds, exit_code=code, reason=reason)
        self._board.failed(job.run, reason)

    def _stop(self, number: int) -> None:
        """Pass a signal on to all runs and wait while they save. Ctrl-C then kills them."""
        if not self._jobs:
            return
        tell(
            f"fastflow: waiting until {counted(len(self._jobs), 'run')} saved and ended; press Ctrl-C again to end "
            "at once"
        )
        for job in self._jobs:
            with contextlib.suppress(ProcessLookupError):
                job.process.send_signal(number)
        with contextlib.suppress(KeyboardInterrupt):
            for job in self._jobs:
                job.process.wait()
                with contextlib.suppress(FastflowError):  # a full disk keeps no other run from its save
                    self._ledger.write(job.run, "stopped")

    def _kill(self) -> None:
        """Leave no process behind, nor those that it started."""
        with deferred_interrupt():
            for job in self._jobs:
                if job.process.poll() is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(job.process.pid, signal.SIGKILL)
                    job.process.wait()
            self._jobs.clear()


def child_command(settings: Path, devices: int) -> list[str]:
    """Return the command of a run, which goes on with what it has saved."""
    own = python_module("fastflow.sweep.child", str(os.getpid()))
    several = [f"--devices={devices}"] if devices > 1 else []
    return [*own, "train", "--config", str(settings), "--resume", "auto", *several]


def _reason(code: int, job: Job) -> str:
    """Say why a run ended: its own last words, otherwise the signal that killed it."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{memory}"
    if code in STOPPED:
        return f"stopped by {signal.Signals(code - 128).name}; the same command goes on with it"
    words = last_line(job.log, job.log_start).removeprefix("fastflow: error: ")
    return words or f"exit code {code}"


def last_line(log: Path, start: int) -> str:
    """Return the last line of a log that is not empty, after `start` bytes."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 8192))
        lines: Sequence[str] = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
