"""Start the vLLM process, send it commands and wait for its replies; notice when it dies or hangs."""

from __future__ import annotations

import atexit
import contextlib
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.multiprocessing

from fastflow.children import safe_path
from fastflow.errors import FastflowError
from fastflow.interrupt import blocked_signals
from fastflow.models.pulse import PULSE
from fastflow.rollout.vllm import child, messages

LOG_LINES = 5
CLOSING_SECONDS = 5.0
POLL_SECONDS = 0.1

Reply = TypeVar("Reply")


class EngineLost(Exception):
    """The process died or hangs. A new one can take over its commands."""


class EngineProcess:
    """One child process with vLLM in it, until `end`.

    startup: seconds that its start may take. silence: seconds that it may show no progress. on_progress: receives the
    number of responses that finished since the last call. Raises EngineLost when the process dies or hangs, and
    FastflowError when vLLM reports that it cannot carry out a command.
    """

    def __init__(
        self,
        settings: messages.EngineSettings,
        *,
        startup: float,
        silence: float,
        on_progress: Callable[[int], None],
    ):
        self._log = Path(settings.log)
        self._silence = silence
        self._on_progress = on_progress
        pulse = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._pulse = pulse.numpy()
        self._seen = self._pulse.copy()
        self._replies: queue.SimpleQueue[messages.Reply | messages.Failed | None] = queue.SimpleQueue()  # None: the end
        spawn = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=child.main, args=(theirs, pulse, settings), daemon=True, name="fastflow-vllm"
        )
        with blocked_signals(), safe_path():  # the child inherits them blocked, and then ignores them
            self._process.start()
            atexit.register(self._process.kill)  # an exit would wait for a child that is stopped or ignores SIGTERM
        theirs.close()
        self._reader = threading.Thread(target=self._read, daemon=True, name="fastflow-vllm-replies")
        self._reader.start()
        try:
            self._wait_for(messages.Ready, startup, "rollout.startup")
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: messages.Attach | messages.Command | messages.Close) -> None:
        """Return when the process has read the message. Raises EngineLost when it hangs or is dead."""
        failure: list[OSError] = []

        def write() -> None:
            try:
                self._pipe.send(message)
            except OSError as error:
                failure.append(error)

        writer = threading.Thread(target=write, daemon=True, name="fastflow-vllm-command")
        writer.start()
        until = time.monotonic() + self._silence
        while writer.is_alive() and time.monotonic() < until:
            writer.join(POLL_SECONDS)
            PULSE.attend()
        if writer.is_alive():
            raise self._hang(self._silence, "rollout.silence")
        if failure:
            raise self._death()

    def wait_for(self, kind: type[Reply]) -> Reply:
        """Wait for the next reply, which must be of this kind, and pass progress on meanwhile."""
        return self._wait_for(kind, self._silence, "rollout.silence")

    def end(self) -> None:
        """Ask the process to end, then kill it. A second call does nothing."""
        if self._process.is_alive():
            with contextlib.suppress(EngineLost):
                self._silence = CLOSING_SECONDS
                self.send(messages.Close())
            until = time.monotonic() + CLOSING_SECONDS
            while self._process.is_alive() and time.monotonic() < until:
                self._process.join(POLL_SECONDS)
                PULSE.attend()
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        atexit.unregister(self._process.kill)
        self._reader.join()  # it ends with the pipe
        self._pipe.close()

    def _read(self) -> None:
        """Take replies as they come, so that the process never waits for the trainer."""
        while True:
            try:
                self._replies.put(self._pipe.recv())
            except (EOFError, OSError, pickle.UnpicklingError):  # the process ended, perhaps during a reply
                self._replies.put(None)
                return

    def _wait_for(self, kind: type[Reply], patience: float, setting: str) -> Reply:
        last_sign = time.monotonic()
        while True:
            PULSE.attend()
            try:
                reply = self._replies.get(timeout=POLL_SECONDS)
                self._pass_on_progress()
                break
            except queue.Empty:
                if self._pass_on_progress():
                    last_sign = time.monotonic()
                elif time.monotonic() - last_sign > patience:
                    raise self._hang(patience, setting) from None
        if reply is None:
            self._replies.put(None)  # the next wait must find it too
            raise self._death()
        if isinstance(reply, messages.Failed):
            raise FastflowError(f"{explain(reply)}{self._last_words()}")
        if not isinstance(reply, kind):
            raise RuntimeError(f"the vLLM process replied with {type(reply).__name__}, and {kind.__name__} was due")
        return reply

    def _hang(self, patience: float, setting: str) -> EngineLost:
        return EngineLost(
            f"the vLLM process has shown no progress for {patience:g} seconds ({setting}: raise it if it was only slow)"
            f"{self._last_words()}"
        )

    def _pass_on_progress(self) -> bool:
        """Report finished responses. Returns whether the process made progress since the last call."""
        now = self._pulse.copy()
        moved, finished = bool((now != self._seen).any()), int(now[1] - self._seen[1])
        self._seen = now
        if finished:
            self._on_progress(finished)
        return moved

    def _death(self) -> EngineLost:
        self._process.join(CLOSING_SECONDS)
        code = self._process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", which is also how Linux ends a process when memory runs out"
        return EngineLost(f"the vLLM process died {how}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return "".join(f"\n    {line}" for line in ("its log ends:", *lines[-LOG_LINES:])) if lines else ""


def explain(failure: messages.Failed) -> str:
    """Return the message for a command that vLLM cannot carry out, with a remedy."""
    if failure.out_of_memory:
        remedy = {
            "starting": "lower rollout.memory_fraction, or the trainer's share: batch.tokens_per_microbatch, lora.rank",
            "waking": "lower rollout.memory_fraction, or the trainer's share: batch.tokens_per_microbatch, lora.rank",
        }.get(failure.while_, "lower rollout.max_sequences, or raise rollout.memory_fraction")
        return f"vLLM ran out of memory while {failure.while_} ({failure.reason}); {remedy} (`fastflow plan` estimates)"
    meaning = {
        "starting": "vLLM could not start: {}; check the model, rollout.memory_fraction and `fastflow doctor`",
        "loading": "vLLM could not take the policy's weights: {}; sample with --rollout.engine local",
        "probing": "vLLM could not compute the log-probs of a probe: {}; sample with --rollout.engine local",
        "sampling": "vLLM refuses the step's requests: {}; check the prompts' lengths and the settings of rollout",
    }
    return meaning[failure.while_].format(failure.reason)
