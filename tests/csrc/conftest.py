"""The native code of `csrc/cpu`, compiled anew for each instruction set."""

from __future__ import annotations

import ctypes
import functools
import os
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastflow_kernels.cpu import native
from fastflow_kernels.cpu.row_pass import NativeRowPass

CSRC = Path(__file__).parents[2] / "csrc"
CPU_SOURCES = CSRC / "cpu"
FLAGS = runpy.run_path(str(CSRC / "compile_flags.py"))
ARCHITECTURES = {"portable": "x86-64", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}
RUNNABLE = {"AVX2": ("portable", "avx2"), "AVX512": ("portable", "avx2", "avx512")}  # by torch's name of the processor


@pytest.fixture(scope="session")
def compile_cpp(tmp_path_factory):
    """A function of sources and flags that returns the path of what they compile to."""
    candidates = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    compiler = next((found for name in candidates if name and (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler: no g++, c++ or clang++ on the PATH, none in CXX")

    def run(*arguments: str | Path, name: str = "compiled") -> Path:
        output = tmp_path_factory.mktemp("native") / name
        flags = ["-std=c++17", f"-I{CPU_SOURCES}", *FLAGS["WITHOUT_OPENMP"]]
        command = [compiler, *flags, *map(str, arguments), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stderr}")
        return output

    return run


@pytest.fixture(scope="session")
def cpu_sources() -> list[Path]:
    return sorted(CPU_SOURCES.glob("*.cpp"))


@pytest.fixture(scope="session")
def release_flags() -> list[str]:
    """Those that setup.py compiles with, OpenMP aside."""
    return FLAGS["COMPILE"]


@pytest.fixture(scope="session")
def assembly(compile_cpp, release_flags, cpu_sources):
    """A function of flags that returns row_pass.cpp as assembly: what takes long of a build, and is made once."""
    (source,) = (path for path in cpu_sources if path.name == "row_pass.cpp")

    @functools.cache
    def run(*flags: str) -> Path:
        return compile_cpp(*release_flags, *flags, "-fPIC", "-S", source, name="row_pass.s")

    return run


@pytest.fixture(scope="session")
def build(compile_cpp, release_flags, cpu_sources, assembly):
    """A function of flags for row_pass.cpp, and of what else to compile or to link. It returns what they make."""

    def run(flags: Sequence[str], *others: str | Path) -> Path:
        rest = [path for path in cpu_sources if path.name != "row_pass.cpp"]
        return compile_cpp(*release_flags, *flags, *others, *rest, assembly(*flags))

    return run


@pytest.fixture(scope="session", params=["installed", *ARCHITECTURES])
def row_pass(request) -> NativeRowPass:
    """The installed library, and one for each instruction set that this processor runs."""
    if request.param == "installed":
        return native.library() or pytest.skip(native.why_not())
    if request.param not in RUNNABLE.get(torch.backends.cpu.get_cpu_capability(), ()):
        pytest.skip(f"needs a processor with {request.param}")
    flags = [f"-march={ARCHITECTURES[request.param]}", "-DFASTFLOW_NO_DISPATCH"]
    path = request.getfixturevalue("build")(flags, "-fPIC", "-shared")
    library = NativeRowPass(ctypes.CDLL(str(path)))
    assert library.instruction_set == request.param
    return library
