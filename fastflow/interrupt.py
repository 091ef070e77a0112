"""Signals that ask a run to end: Ctrl-C, and SIGTERM and SIGHUP, which schedulers and closing terminals send.

All three become one exception, and all three wait for a moment when nothing is half done. A signal that was ignored
when the program started, as nohup ignores SIGHUP, stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastflow.errors import FastflowError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_PRESS_SECONDS = 0.5  # two Ctrl-C closer than this are one, perhaps passed on by a program in between


class StopRequest(KeyboardInterrupt):
    """A signal asks the program to end. It is a KeyboardInterrupt, so that what cleans up after a Ctrl-C does so."""

    def __init__(self, number: int = signal.SIGINT):
        self.number = signal.Signals(number)
        super().__init__(number)

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {self.number.name}"


class GivenUp(StopRequest):
    """A second Ctrl-C gave up the work that held the first signal back. number: of the first."""


class RunStopped(FastflowError):
    """A run that a signal ended; the message says what it left. exit_code: 128 and the signal's number."""

    def __init__(self, message: str, stop: KeyboardInterrupt):
        super().__init__(message)
        self.exit_code = exit_code(stop)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells do it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + getattr(stop, "number", signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise StopRequest in the main thread at the first signal. Later ones are ignored, since the program is ending
    already, but for a Ctrl-C, which ends its cleaning up. No effect inside itself, or off the main thread.
    """
    times: list[float] = []

    def stop(number: int, frame: object) -> None:
        now = time.monotonic()
        if times and (number != signal.SIGINT or now - times[-1] < ONE_PRESS_SECONDS):
            return
        times.append(now)
        raise StopRequest(number)

    if isinstance(signal.getsignal(signal.SIGTERM), _Handler):
        yield
        return
    with _handling(stop):
        yield


@contextlib.contextmanager
def deferred_interrupt(*, work: str = "", deliver: bool = True) -> Iterator[None]:
    """Hold signals back until the block is done, then deliver the first of them. No effect off the main thread.

    work: what takes so long that the user is told about it ("saving the policy"); a second Ctrl-C then gives it up and
    raises GivenUp. deliver: whether the signal is delivered at all, or was about what is ending anyway.
    """
    received: list[tuple[int, float]] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if work and number == signal.SIGINT and received and now - received[-1][1] >= ONE_PRESS_SECONDS:
            raise GivenUp(received[0][0])
        received.append((number, now))
        if work and len(received) == 1:
            tell(f"fastflow: {StopRequest(number)} while {work}, which is finished first; Ctrl-C gives it up")

    with _handling(note):
        yield
    if received and deliver:
        signal.raise_signal(received[0][0])


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold signals back in this thread, and in processes that it starts, until the block is done. None is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """For a process that its parent ends: signals to the whole group are the parent's to answer."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def tell(message: str) -> None:
    """Print on stderr, which may be a terminal that is gone, or in the middle of a print that a signal interrupts."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Handler:
    """What a signal calls, of a type of its own, so that `stop_on_signals` recognises itself."""

    react: Callable[[int, object], None]

    def __call__(self, number: int, frame: object) -> None:
        self.react(number, frame)


@contextlib.contextmanager
def _handling(react: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _Handler(react)) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
