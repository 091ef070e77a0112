"""Compiles what a launcher would launch on an architecture, on a machine without that device.

The launchers run as they are, on meta tensors: these have shapes, strides and types, and no memory. Two things are
replaced. Triton's driver becomes one that only names the architecture, and a launch becomes Triton's own warm-up,
which compiles and stops. Argument types, alignment, constants and options are therefore those of the real launch.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# The assembler speaks of a kernel only while it assembles it, so that one out of Triton's cache would say nothing.
TALKATIVE = {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}


class Compiled(NamedTuple):
    """A kernel as Triton's warm-up returns it, and what the assembler, ptxas, said of it."""

    kernel: object
    log: str


class _NamedTarget:
    """What the compiler asks a driver for."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> str:
        return f"sm_{self.architecture}"  # the key of Triton's cache in the process: no real device has it

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(architecture: int) -> Iterator[list[Compiled]]:
    """Within it nothing is launched: each launch appends what it compiled to the list.

    architecture: 90 for compute capability 9.0.
    """
    compiled = []
    run = JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **options):
        with contextlib.redirect_stdout(io.StringIO()) as log:
            done = run(kernel, *arguments, grid=grid, warmup=True, **options)
        compiled.append(Compiled(done, log.getvalue()))

    with (
        mock.patch.dict(os.environ, TALKATIVE),
        mock.patch.object(driver, "_active", _NamedTarget(architecture)),
        mock.patch.object(JITFunction, "run", compile_only),
    ):
        yield compiled
