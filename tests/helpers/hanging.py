"""A module that a run names as its reward, so that all ranks import it; the rank HANGS then hangs in the way HOW says,
before update number BEFORE (the fourth by default) or, with IN_A_SAVE, in the thread that writes.

SLOW: seconds that every weight takes to load, and every file until the disk has it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable

import torch
import transformers.core_model_loading as loading

from fastflow.run.checkpoints import Checkpoints
from fastflow.train.learner import Learner


def reward(response: str, record: dict[str, object]) -> float:
    return float(len(response))


def sleep() -> None:
    while True:
        time.sleep(0.1)


def loop() -> None:
    while True:
        pass


def hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(10_000)


def take_all_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))
    torch.zeros(2**33)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def slowly(function: Callable[..., object], seconds: float) -> Callable[..., object]:
    def slow(*arguments, **options):
        time.sleep(seconds)
        return function(*arguments, **options)

    return slow


WAYS: dict[str, Callable[[], None]] = {way.__name__: way for way in (sleep, loop, hold_the_gil, take_all_memory, stop)}
if os.environ.get("RANK") == os.environ.get("HANGS", "none"):
    _update = Learner.update

    def update(self: Learner, *arguments, **options):
        if self.updates == int(os.environ.get("BEFORE", "3")):
            WAYS[os.environ["HOW"]]()
        return _update(self, *arguments, **options)

    def publish(self: Checkpoints, *_):
        WAYS[os.environ["HOW"]]()

    if "IN_A_SAVE" in os.environ:
        Checkpoints.publish = publish  # type: ignore[method-assign]
    else:
        Learner.update = update  # type: ignore[method-assign]
if "SLOW" in os.environ:
    seconds = float(os.environ["SLOW"])
    loading.set_param_for_module = slowly(loading.set_param_for_module, seconds)
    os.fsync = slowly(os.fsync, seconds)
