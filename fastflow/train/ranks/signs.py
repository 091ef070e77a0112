"""Signs of work from inside long computations, for the other ranks' watch: blocks of rows that the ops take, and
kernels that Triton compiles.

A first step may compile dozens of kernels, each in seconds, and a block of rows on a CPU may take as long. Each counts
as a piece of work, so that the whole needs no limit of its own.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from fastflow.models.pulse import PULSE
from fastflow_kernels import on_block

Listener = Callable[..., None]


@functools.cache
def give_signs(*, compiles: bool) -> None:
    """Count such pieces of work from now on. A second call does nothing. compiles: whether Triton may, which takes a
    GPU.
    """
    on_block(PULSE.work)
    if compiles and importlib.util.find_spec("triton") is not None:
        from triton import knobs

        knobs.compilation.listener = with_a_sign(knobs.compilation.listener)


def with_a_sign(listener: Listener | None) -> Listener:
    """Return a listener to Triton's compiler that counts a kernel, and tells the one that listens already."""

    def count(**compiled: Any) -> None:
        PULSE.work()
        if listener is not None:
            listener(**compiled)

    return count
