"""That the compiler has made vectors of the sweeps' loops: it gives no warning where it does not, only slow code."""

from __future__ import annotations

import platform
import re
import shutil

import pytest

PACKED = re.compile(r"\sv?(?:mul|fn?m(?:add|sub)\d+)ps\s")
SCALAR = re.compile(r"\sv?(?:mul|fn?m(?:add|sub)\d+)ss\s")

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or shutil.which("g++") is None, reason="needs g++ for x86-64"
)


@pytest.mark.parametrize(("march", "register"), [("x86-64", "xmm"), ("x86-64-v3", "ymm"), ("x86-64-v4", "zmm")])
def test_products_are_packed(assembly, march, register):
    code = assembly(f"-march={march}", "-DFASTFLOW_NO_DISPATCH").read_text()
    packed = [line for line in code.splitlines() if PACKED.search(line) and register in line]
    assert len(packed) > len(SCALAR.findall(code))


@pytest.mark.slow
def test_every_clone_has_vectors_of_its_own(assembly):
    code = assembly().read_text()
    if ".arch_x86_64_v4" not in code:
        pytest.skip("needs a compiler and a C library with target_clones (GCC 12 or newer, glibc)")
    assert "%zmm" in code and "%ymm" in code
