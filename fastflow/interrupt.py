"""Signals that ask a run to end: Ctrl-C, and SIGTERM and SIGHUP, which schedulers and closing terminals send.

All three become one exception. All three wait until nothing is half done. A signal that was ignored when the
program started stays ignored, as SIGHUP under nohup.
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
ONE_PRESS_SECONDS = 0.5  # two Ctrl-C that are closer count as one: a program in between may pass it on again


class StopRequest(KeyboardInterrupt):
    """A signal asks the program to end. Code that cleans up after KeyboardInterrupt cleans up after this too."""

    def __init__(self, number: int = signal.SIGINT):
        self.number = signal.Signals(number)
        super().__init__(number)

    def __str__(self) -> str:
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {self.number.name}"


class GivenUp(StopRequest):
    """A second Ctrl-C gave up the work that held the first signal back. number: that of the first signal."""


class RunStopped(FastflowError):
    """A signal ended the run; the message says what the run left behind. exit_code: 128 plus the signal's number."""

    def __init__(self, message: str, stop: KeyboardInterrupt):
        super().__init__(message)
        self.exit_code = exit_code(stop)


@contextlib.contextmanager
def stopped(message: Callable[[], str]) -> Iterator[None]:
    """Raise RunStopped where a signal ends the block. message: makes what it says, at that time."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise RunStopped(message(), stop) from stop


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return 128 plus the signal's number, as shells do: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + getattr(stop, "number", signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise StopRequest in the main thread at the first signal. The program then ends. Later signals do nothing,
    except Ctrl-C, which ends the cleaning up. Has no effect within itself, nor in another thread.
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
    """Hold signals back until the block is done, then deliver the first of them. Has no effect in another thread.

    work: names long work to the user ("saving the policy"); a second Ctrl-C then gives it up and raises GivenUp.
    deliver: False where the program ends anyway, so that the signal is dropped.
    """
    received: list[tuple[int, float]] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if work and number == signal.SIGINT and received and now - received[-1][1] >= ONE_PRESS_SECONDS:
            raise GivenUp(received[0][0])
        received.append((number, now))
        if work and len(received) == 1:
            tell(f"fastflow: {StopRequest(number)} while {work}, which is finished first; press Ctrl-C to give it up")

    def deliver_first() -> None:
        if received and deliver:
            signal.raise_signal(received[0][0])

    try:
        with _handling(note):
            yield
    except Exception:  # which the signal's exception names as its context; GivenUp is of that signal already
        deliver_first()
        raise
    deliver_first()


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """Note signals instead of raising them, for a program that must stop at the same place as others. Yields what
    returns the first one's number, 0 before it. Ctrl-C after another signal raises GivenUp at once.
    """
    received: list[tuple[int, float]] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and received and now - received[-1][1] >= ONE_PRESS_SECONDS:
            raise GivenUp(received[0][0])
        received.append((number, now))

    with _handling(note):
        yield lambda: received[0][0] if received else 0


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold signals back in this thread, and in processes that it starts, until the block is done. No signal is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore signals in a process that its parent ends: the parent answers signals to the whole group."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def tell(message: str) -> None:
    """Print on stderr. The terminal may be gone, and a signal may have interrupted another print: neither raises."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Handler:
    """The function that a signal calls. By its type, `stop_on_signals` recognises its own."""

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
