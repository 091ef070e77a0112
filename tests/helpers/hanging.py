"""A module that a run names as its reward, so that all ranks import it; the rank HANGS then hangs in the way HOW says,
in the third update.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable

import torch

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


WAYS: dict[str, Callable[[], None]] = {way.__name__: way for way in (sleep, loop, hold_the_gil, take_all_memory)}
if os.environ.get("RANK") == os.environ.get("HANGS", "none"):
    _update = Learner.update

    def update(self: Learner, *arguments, **options):
        if self.updates == 3:
            WAYS[os.environ["HOW"]]()
        return _update(self, *arguments, **options)

    Learner.update = update  # type: ignore[method-assign]
