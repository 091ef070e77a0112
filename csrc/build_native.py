"""setuptools commands that compile `csrc/cpu` into `fastflow_kernels/_native.so`, where there is a C++ compiler; and
`csrc/cuda`, by the rule of build_cuda.py.

The library is optional: fastflow computes the same without it, slower on a CPU. An install that cannot build it says
why in one line, which pip shows with -v, and goes on. In the environment, 0 or 1,

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
FAILURES = (CCompilerError, BaseError, OSError, RuntimeError, ValueError)
# what it is called, what insists on it, what mends it
CPU = ("native library", "FASTFLOW_REQUIRE_NATIVE", "Install a C++17 compiler, name it in CXX")
CUDA = ("CUDA library", build_cuda.SWITCH, "See that nvcc compiles for sm_90")


def is_on(switch: str, default: bool) -> bool:
    value = os.environ.get(switch, "1" if default else "0")
    if value not in ("0", "1"):
        raise SystemExit(f"fastflow: {switch} must be 0 or 1, got {value!r}; correct it or unset it.")
    return value == "1"


def extensions() -> list[Extension]:
    """Both libraries; which of them are built is BuildNative's to find out."""
    return [
        Extension(
            LIBRARY,
            sources=sorted(map(str, SOURCES.glob("*.cpp"))),
            depends=sorted(map(str, [*SOURCES.glob("*.h"), *Path("csrc").glob("*.py")])),
            language="c++",
        ),
        build_cuda.extension(),
    ]


class BuildNative(build_ext):
    """Drops from the distribution what is not wanted or cannot be built, unless the environment insists on it.

    Always compiles, and removes what an earlier build has left: a library of other sources, or of another compiler,
    must not pass for this one's.
    """

    def build_extensions(self) -> None:
        self.force = True
        self.extensions = self.distribution.ext_modules = [ext for ext in self.extensions if self._is_built(ext)]

    def _is_built(self, ext: Extension) -> bool:
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        name, insists, remedy = CUDA if ext.name == build_cuda.LIBRARY else CPU
        try:
            if not self._is_wanted(ext):
                return False
            self.build_extension(ext)
        except FAILURES as error:
            if is_on(insists, default=False):
                raise SystemExit(
                    f"fastflow: {insists}=1, but its {name} cannot be built ({error}). {remedy}, or unset {insists}."
                ) from error
            print(f"fastflow: installed without its {name}, which could not be built ({error})", flush=True)
            return False
        return True

    def _is_wanted(self, ext: Extension) -> bool:
        if ext.name == build_cuda.LIBRARY:
            return build_cuda.why_not() is None
        if is_on("FASTFLOW_NATIVE", default=True):
            return True
        if is_on("FASTFLOW_REQUIRE_NATIVE", default=False):
            raise SystemExit("fastflow: FASTFLOW_NATIVE=0 contradicts FASTFLOW_REQUIRE_NATIVE=1; unset one of them.")
        return False

    def copy_extensions_to_source(self) -> None:
        """Of an editable install."""
        for name in (LIBRARY, build_cuda.LIBRARY):
            Path("kernels", "fastflow_kernels", self.get_ext_filename(name.rpartition(".")[2])).unlink(missing_ok=True)
        super().copy_extensions_to_source()

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
