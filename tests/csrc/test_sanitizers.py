"""The native sweeps on random calls: as installed, and under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FUZZ = Path(__file__).with_name("fuzz_row_pass.cpp")
# Without clones: the loader chooses among them before the sanitizers have started.
SANITIZED = [
    "-O1", "-g1", "-DFASTFLOW_NO_DISPATCH", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
]  # fmt: skip
# The code under test allocates nothing, and the search for leaks fails where processes may not be traced.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def agrees(program: Path, seed: int, small: int, large: int) -> None:
    command = [str(program), str(seed), str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0 and "all calls agree" in done.stdout, done.stdout + done.stderr


def test_as_installed(build):
    agrees(build([], FUZZ), seed=0, small=3000, large=6)


def test_sanitized(compile_cpp, cpu_sources, tmp_path):
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    try:
        compile_cpp(*SANITIZED, empty)
    except AssertionError:
        pytest.skip("needs a compiler with OpenMP and the address and undefined-behaviour sanitizers")
    agrees(compile_cpp(*SANITIZED, FUZZ, *cpu_sources), seed=1, small=1500, large=4)
