"""setuptools commands that compile `csrc/cpu` into `fastflow_kernels/_native.so`, where there is a C++ compiler; and
`csrc/cuda`, by the rule of build_cuda.py.

The library is optional: fastflow computes the same without it, slower on a CPU. An install that cannot build it says
why in one line and goes on. In the environment,

    FASTFLOW_NATIVE=0           does not try
    FASTFLOW_REQUIRE_NATIVE=1   fails where it cannot be built

A plain C interface, loaded with ctypes, and not an extension of torch, not even of LibTorch's stable ABI: it builds in
7 seconds (one core, GCC 12) with no torch in pip's isolated environment, and one library serves every Python and every
torch that fastflow runs on. Hence the wheel's tag, py3-none-<platform>; without the library it is py3-none-any.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import build_cuda
from compile_flags import COMPILE, OPENMP, WITHOUT_OPENMP
from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

LIBRARY = "fastflow_kernels._native"
SOURCES = Path("csrc/cpu")
FAILURES = (CCompilerError, BaseError, OSError, RuntimeError)
# what it is called, what insists on it, what mends it
CPU = ("native library", "FASTFLOW_REQUIRE_NATIVE", "Install a C++17 compiler, name it in CXX")
CUDA = ("CUDA library", build_cuda.SWITCH, "See that nvcc compiles for sm_90")


def extensions() -> list[Extension]:
    """What setup.py is to build: each library that the environment does not leave out."""
    if os.environ.get("FASTFLOW_NATIVE") == "0":
        return build_cuda.extensions()
    return [
        Extension(
            LIBRARY,
            sources=sorted(map(str, SOURCES.glob("*.cpp"))),
            depends=sorted(map(str, [*SOURCES.glob("*.h"), *Path("csrc").glob("*.py")])),
            language="c++",
        ),
        *build_cuda.extensions(),
    ]


class BuildNative(build_ext):
    """Drops from the distribution what cannot be built, unless the environment insists on it."""

    def build_extensions(self) -> None:
        self.extensions = self.distribution.ext_modules = [ext for ext in self.extensions if self._is_built(ext)]

    def _is_built(self, ext: Extension) -> bool:
        name, insists, remedy = CUDA if ext.name == build_cuda.LIBRARY else CPU
        try:
            self.build_extension(ext)
        except FAILURES as error:
            if os.environ.get(insists) == "1":
                raise SystemExit(
                    f"fastflow: {insists}=1, but its {name} cannot be built ({error}). {remedy}, or unset {insists}."
                ) from error
            print(f"fastflow: installed without its {name}, which could not be built ({error})", flush=True)
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        """With OpenMP, else without it."""
        if ext.name == build_cuda.LIBRARY:
            return build_cuda.compile_library(Path(self.get_ext_fullpath(ext.name)))
        if sys.platform == "win32":
            raise BaseError("its sources are written for GCC and Clang")
        try:
            ext.extra_compile_args, ext.extra_link_args = COMPILE + OPENMP, OPENMP
            super().build_extension(ext)
        except FAILURES:
            ext.extra_compile_args, ext.extra_link_args = COMPILE + WITHOUT_OPENMP, []
            super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's tag: nothing in the library depends on Python."""
        return os.path.join(*fullname.split(".")) + ".so"


class TaggedWheel(bdist_wheel):
    """Tags the wheel by what was built into it, not by what was going to be."""

    def run(self) -> None:
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform
