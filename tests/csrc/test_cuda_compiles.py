"""What nvcc makes of the CUDA kernels, and how rows are laid over a device; none of it needs a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
THREADS = 384  # device::threads in device_cuda.h
TOGETHER = 3  # blocks of a multiprocessor
REGISTERS = 65536  # of a multiprocessor
USAGE = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*Used (\d+) registers"
)
KERNELS = 32  # 12 that keep the row, 20 that stream it


@pytest.fixture(scope="module")
def nvcc() -> str:
    return shutil.which("nvcc") or pytest.skip("needs CUDA's compiler: nvcc is not on the PATH")


@pytest.fixture(scope="module")
def build_cuda():
    spec = importlib.util.spec_from_file_location("build_cuda", SOURCES.parent / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("architecture", ["80", "90a", "100"])
def test_no_kernel_spills(nvcc, architecture, tmp_path):
    """And so few registers that three blocks fit a multiprocessor, of whose memory the plan gives each a third."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, target, "-std=c++17", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, str(SOURCES / "row_pass.cu"), "-o", str(tmp_path / "row_pass.cubin")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    usage = USAGE.findall(done.stderr)
    assert len(usage) == KERNELS
    for *memory, registers in usage:
        assert memory == ["0", "0", "0"]
        allotted = -(-int(registers) // 8) * 8
        assert TOGETHER * THREADS * allotted <= REGISTERS


class Limits(NamedTuple):
    """Bytes of shared memory: of a block, of a multiprocessor, taken from it for each block. Blocks of a cluster."""

    block: int
    multiprocessor: int
    reserved: int
    cluster: int


H200 = Limits(232448, 233472, 1024, 8)
A100 = Limits(166912, 167936, 1024, 1)


class Plan(NamedTuple):
    """As in csrc/cuda/row_plan.h."""

    is_resident: bool
    cluster: int
    slice: int
    shared_bytes: int

    def together(self, limits: Limits) -> int:
        """Blocks that a multiprocessor has shared memory for."""
        return limits.multiprocessor // (self.shared_bytes + limits.reserved)


@pytest.fixture(scope="module")
def plan(nvcc, tmp_path_factory):
    """A function of limits and vocabularies that returns the plan of each."""
    program = tmp_path_factory.mktemp("plan") / "row_plan"
    source = Path(__file__).parent / "cuda" / "row_plan.cu"
    target = "-gencode=arch=compute_90,code=sm_90"
    subprocess.run([nvcc, target, "-std=c++17", f"-I{SOURCES}", str(source), "-o", str(program)], check=True)

    def run(limits: Limits, vocabularies: list[int]) -> list[Plan]:
        command = [str(program), *map(str, limits), *map(str, vocabularies)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [Plan(bool(flag), *rest) for flag, *rest in (map(int, line.split()) for line in lines)]

    return run


@pytest.mark.parametrize("limits", [H200, A100], ids=["H200", "A100"])
def test_slices_cover_the_row_and_fit(plan, limits):
    vocabularies = [*range(1, 40), *range(1000, 600_000, 997)]
    for vocabulary, found in zip(vocabularies, plan(limits, vocabularies), strict=True):
        assert found.shared_bytes <= limits.block
        assert (found.cluster - 1) * found.slice < vocabulary <= found.cluster * found.slice
        if found.is_resident:
            assert found.cluster <= limits.cluster and found.slice % 8 == 0
            assert found.shared_bytes > 4 * found.slice
            assert found.together(limits) >= 1


def test_vocabularies_of_models(plan):
    vocabularies = [32_000, 50_257, 128_256, 151_936, 262_144, 450_000, 470_000]
    found = plan(H200, vocabularies)
    assert [each.cluster if each.is_resident else 0 for each in found] == [2, 4, 8, 8, 8, 8, 0]
    assert [each.together(H200) for each in found[:6]] == [3, 4, 3, 3, 1, 1]
    assert found[3].slice == 18_992
    assert [each.is_resident for each in plan(A100, [32_000, 50_257])] == [True, False]


def test_the_library_loads_without_a_driver(nvcc, build_cuda, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFLOW_CUDA", "1")
    library = ctypes.CDLL(str(build_cuda.build_cuda(tmp_path)))
    library.fastflow_cuda_error.restype = ctypes.c_char_p
    assert library.fastflow_cuda_abi_version() == 2
    assert library.fastflow_cuda_error(1) == b"invalid argument"


def test_what_decides_whether_it_is_built(build_cuda, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FASTFLOW_CUDA", "1")
    with pytest.raises(RuntimeError, match=r"FASTFLOW_CUDA=1 asks for .*nvcc is neither .*; install it or unset"):
        build_cuda.build_cuda(tmp_path)
    monkeypatch.setenv("FASTFLOW_CUDA", "yes")
    with pytest.raises(ValueError, match="must be 0 or 1, got 'yes'"):
        build_cuda.build_cuda(tmp_path)
    monkeypatch.setenv("FASTFLOW_CUDA", "0")
    assert build_cuda.build_cuda(tmp_path) is None and build_cuda.why_not() == "FASTFLOW_CUDA=0"
    monkeypatch.delenv("FASTFLOW_CUDA")
    assert build_cuda.build_cuda(tmp_path) is None and "nvcc" in build_cuda.why_not()

    fake = tmp_path / "nvcc"
    fake.write_text("#!/bin/sh\necho no such architecture >&2\nexit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setattr(build_cuda, "torch_has_cuda", lambda: False)
    assert build_cuda.build_cuda(tmp_path) is None and "torch" in build_cuda.why_not()
    monkeypatch.setattr(build_cuda, "torch_has_cuda", lambda: True)
    assert build_cuda.why_not() is None
    with pytest.raises(RuntimeError, match=r"FASTFLOW_CUDA=0 installs without it.*\n.*no such architecture"):
        build_cuda.build_cuda(tmp_path)
