"""Run the vLLM process: build the engine, then obey the trainer until the pipe closes or the parent is gone.

vLLM runs inside this process, without an engine process of its own. So it is ready in seconds, and the trainer sees its
death at once. All that it prints goes to the log file.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from fastflow.interrupt import ignore_signals
from fastflow.models.ranks import alone
from fastflow.rollout.vllm import messages
from fastflow.rollout.vllm.engine import Engine, RequestRefused

REQUIRED_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
DEFAULT_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # where its one worker waits for the others: there are none
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
DEFAULT_CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}  # the first responses would wait for a compiler, without gain
ORPHAN_CHECK_SECONDS = 0.5

Result = TypeVar("Result")


def main(pipe: Connection, pulse: torch.Tensor, settings: messages.EngineSettings) -> None:
    """Report over the pipe what cannot be done; end where a new process may do better. pulse: see Engine."""
    ignore_signals()  # the trainer handles Ctrl-C, SIGTERM and SIGHUP, and then closes the pipe
    _print_to(settings.log)
    _die_with(os.getppid(), settings.model)
    alone(os.environ)  # vLLM's one worker is none of the run's ranks
    os.environ |= REQUIRED_ENVIRONMENT
    if settings.gpu is not None:  # CUDA reads it when it is first used
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.gpu
    for name, value in (DEFAULT_ENVIRONMENT | (DEFAULT_CPU_ENVIRONMENT if settings.device == "cpu" else {})).items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(settings.threads)  # before vLLM is imported, which makes this a no-op
    try:
        engine = _carry_out("starting", lambda: Engine(settings, pulse), pipe)
        if engine is None:
            return
        pipe.send(messages.Ready())
        while not isinstance(message := pipe.recv(), messages.Close):
            if isinstance(message, messages.Attach):
                engine.attach(message)
                continue
            what, act = engine.action(message)
            reply = _carry_out(what, act, pipe)
            if reply is not None:
                pipe.send(reply)
            elif what != "sampling":  # a refused request leaves the engine as it was
                return
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer is gone


def _carry_out(what: messages.Activity, act: Callable[[], Result], pipe: Connection) -> Result | None:
    """Return what `act` returns. Where a new process would fail too, tell the trainer and return None.

    A new process would fail too where memory is short, where vLLM refuses a request, and where the failure depends on
    model and weights alone. Raises every other failure.
    """
    try:
        return act()
    except Exception as error:
        traceback.print_exc()
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in reason.lower()
        if not (out_of_memory or isinstance(error, RequestRefused) or what in ("starting", "loading", "probing")):
            raise
        pipe.send(messages.Failed(what, reason.strip(), out_of_memory))
        return None


def _print_to(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _die_with(parent: int, folder: str) -> None:
    """End this process soon after its parent, even during a long computation, and remove their folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
