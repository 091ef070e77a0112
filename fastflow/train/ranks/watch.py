"""Ends a run of several ranks when one of them hangs: says which, and writes the stacks of all.

A thread in each rank tells the others, through the store at which torchrun's ranks meet, that it lives and how far its
main thread has come. It needs no collective, and goes on where the main thread does not.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from fastflow.config.schema import Config
from fastflow.errors import message_of
from fastflow.interrupt import tell
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks
from fastflow.run.directory import CONFIG_FILE, STACKS
from fastflow.train.ranks import effort
from fastflow.train.ranks.outlook import SILENT_SECONDS, Hang, Outlook, Sign
from fastflow.train.ranks.signs import give_signs

TICK_SECONDS = 1.0
STORE_SECONDS = 5.0  # for an answer of the store
FAREWELL_SECONDS = 5.0  # for all ranks to write their stacks
EXIT_CODE = 2
HANG, SIGN, WRITTEN = "fastflow/hang", "fastflow/sign/{}", "fastflow/stacks/{}"
_FOREIGN = (sysconfig.get_path("stdlib"), f"{os.sep}site-packages{os.sep}", "<frozen")
_COLLECTIVE = f"torch{os.sep}distributed{os.sep}"


@contextlib.contextmanager
def watched(config: Config, ranks: Ranks) -> Iterator[None]:
    """Watch the other ranks during the block; does nothing where there is one."""
    if ranks.count == 1:
        yield
        return
    watch = Watch(ranks, config.run.hang_after, Path(config.run.output) / STACKS)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


class Watch:
    """The thread. directory: for the stacks."""

    def __init__(self, ranks: Ranks, least: float, directory: Path, environment: Mapping[str, str] = os.environ):
        self._ranks, self._directory = ranks, directory
        self._store = dist.TCPStore(
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), None, False,
            datetime.timedelta(seconds=STORE_SECONDS), wait_for_workers=False,
        )  # fmt: skip
        self._outlook = Outlook(least)
        self._unanswered, self._place = 0.0, 0  # seconds without the store at one place
        self._signs: list[Sign] = []
        self._main = threading.main_thread().ident
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fastflow-watch", daemon=True)
        self._number = 0

    def start(self) -> None:
        """Give a first sign before anything can hang: a rank that never gave one is taken for one that is to come."""
        give_signs(compiles=torch.cuda.is_available())
        with contextlib.suppress(RuntimeError):  # without the store, the thread says so
            self._tell()
        self._thread.start()

    def stop(self) -> None:
        """Tell the others that this rank is at its end, and watch no longer."""
        self._stopping.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # the store is gone with the launcher
            self._tell(has_left=True)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(TICK_SECONDS):
            now = time.monotonic()
            passed, before = min(now - before, TICK_SECONDS + STORE_SECONDS), now  # for longer, it was stopped
            try:
                self._tell()
                hang, speaker = self._look(passed)
                self._unanswered = 0.0
            except RuntimeError as error:  # of several kinds
                hang, speaker = self._without_store(passed, error), self._ranks.rank
            if hang is not None:
                self._end(hang, speaks=speaker == self._ranks.rank)

    def _tell(self, *, has_left: bool = False) -> None:
        self._number += 1
        at, waits = where(sys._current_frames().get(self._main or 0))
        own = Sign(
            self._ranks.rank, self._number, PULSE.place, PULSE.steps, PULSE.is_patient, at, waits,
            os.getpid(), socket.gethostname(), has_left, PULSE.attended + effort.moved(),
        )  # fmt: skip
        self._store.set(SIGN.format(own.rank), own.to_json())

    def _look(self, passed: float) -> tuple[Hang | None, int]:
        """The hang that this rank sees or another has seen, and the rank that says so."""
        if self._store.check([HANG]):
            return _read_claim(self._store.get(HANG))
        keys = [SIGN.format(rank) for rank in range(self._ranks.count)]
        if self._signs or self._store.check(keys):
            self._signs = [Sign.from_json(text) for text in self._store.multi_get(keys)]
            hang = self._outlook.after(passed, self._signs)
        else:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            hang = self._outlook.without(passed, missing)
        if hang is None:
            return None, 0
        claim = json.dumps([self._ranks.rank, hang.ranks, hang.sentence, hang.is_silent])
        return _read_claim(self._store.compare_set(HANG, "", claim))  # of several that see it, one speaks

    def _without_store(self, passed: float, error: RuntimeError) -> Hang | None:
        """Without an answer of the store nothing is known of the others; it matters once this rank stands still."""
        self._unanswered = self._unanswered + passed if self._place == PULSE.place else 0.0
        self._place = PULSE.place
        if self._unanswered < SILENT_SECONDS:
            return None
        reason = message_of(error, most=100)  # a trace through C++ follows
        return Hang([], f"rank {self._ranks.rank} stands still, and the ranks' store does not answer ({reason})", True)

    def _end(self, hang: Hang, *, speaks: bool) -> None:
        """Say what happened, write the stacks, and end the process when the other ranks have written theirs."""
        if speaks:
            again = " with --resume" if (self._directory.parent / CONFIG_FILE).exists() else ""
            tell(
                f"fastflow: error: {hang.sentence}; the stacks of all ranks that answer are in {self._directory}; "
                f"start the run again{again}"
            )
            self._ask_for_stacks(hang)
        self._write_stacks()
        with contextlib.suppress(RuntimeError):
            self._store.set(WRITTEN.format(self._ranks.rank), "yes")
            silent = hang.ranks if hang.is_silent else []
            others = [WRITTEN.format(rank) for rank in range(self._ranks.count) if rank not in silent]
            until = time.monotonic() + FAREWELL_SECONDS
            while hang.ranks and not self._store.check(others) and time.monotonic() < until:
                time.sleep(TICK_SECONDS / 10)
        _say_no_more()  # that the others are gone, which the main thread notices, is no news
        os._exit(EXIT_CODE)

    def _ask_for_stacks(self, hang: Hang) -> None:
        """Have ranks of this machine that give no sign print their stacks, which needs no Python in them."""
        for sign in self._signs if hang.is_silent else ():
            if sign.rank in hang.ranks and sign.host == socket.gethostname() and sign.steps:
                with contextlib.suppress(OSError):
                    os.kill(sign.pid, signal.SIGUSR1)

    def _write_stacks(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with (self._directory / f"rank-{self._ranks.rank}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            tell(f"fastflow: the stacks of rank {self._ranks.rank} were not written: {error.strerror or error}")


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The line that a thread is in, of libraries only where there is none else, and whether a collective waits there.

    frame: the thread's innermost.
    """
    waits, line = False, ""
    innermost = frame
    while frame is not None:
        file = frame.f_code.co_filename
        waits = waits or _COLLECTIVE in file
        if not any(part in file for part in _FOREIGN):
            line = _line(frame)
            break
        frame = frame.f_back
    return line or (_line(innermost) if innermost is not None else "no Python code"), waits


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}, {frame.f_code.co_name}"


def _read_claim(text: bytes) -> tuple[Hang, int]:
    speaker, ranks, sentence, is_silent = json.loads(text)
    return Hang(ranks, sentence, is_silent), speaker


def _say_no_more() -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
