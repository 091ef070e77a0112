"""Compiles what a launcher would launch on an architecture, on a machine without that device.

The launchers run as they are, on meta tensors: these have shapes, strides and types, and no memory. Two things are
replaced. Triton's driver becomes one that only names the architecture, and a launch becomes Triton's own warm-up,
which compiles and stops. Argument types, alignment, constants and options are therefore those of the real launch.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


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
def compiling_for(architecture: int) -> Iterator[list]:
    """Within it nothing is launched: each launch appends the kernel that it compiled to the list.

    architecture: 90 for compute capability 9.0.
    """
    compiled = []
    run = JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **options):
        compiled.append(run(kernel, *arguments, grid=grid, warmup=True, **options))

    with (
        mock.patch.object(driver, "_active", _NamedTarget(architecture)),
        mock.patch.object(JITFunction, "run", compile_only),
    ):
        yield compiled
