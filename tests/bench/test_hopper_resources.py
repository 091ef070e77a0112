"""The gate over the kernels from QuACK: what it calls a breach, that it says why it cannot run, and the gate itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import compile_report, hopper_resources
from bench.compile_report import Resources
from bench.hopper_cases import cases

ROOT = Path(__file__).resolve().parents[2]
CLEAN = Resources(
    registers=168,
    stack_bytes=8,
    local_bytes=0,
    shared_bytes=0,
    tensor_memory_columns=0,
    warps=12,
    instructions=Counter(HGMMA=16, UTMALDG=2, STL=1, LDL=1),
)
CLEAN_LISTING = "/*0e60*/ STL R0 ;\n/*0e70*/ LDL R0 ;\n/*0e80*/ HGMMA R0 ;\n/*0e90*/ HGMMA R0 ;\n"
HAS_QUACK = all(importlib.util.find_spec(name) is not None for name in ("quack", "cutlass"))


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """The breaches of a kernel that would read so."""

    def judge(listing: str = CLEAN_LISTING, **found) -> list[str]:
        binary = tmp_path / "kernel.cubin"
        binary.touch()
        resources = Resources(**(vars(CLEAN) | found))
        monkeypatch.setattr(compile_report, "read_cubin", lambda *given, **named: resources)
        monkeypatch.setattr(compile_report, "disassembled", lambda binary: listing)
        return hopper_resources._judge("kernel", binary, "")["breaches"]

    return judge


def test_a_clean_kernel_has_no_breach(judged):
    assert judged() == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"registers": 169}, "169 registers"),
        ({"stack_bytes": 24}, "a stack of 24 bytes"),
        ({"local_bytes": 8}, "8 bytes of local memory"),
        ({"instructions": Counter(UTMALDG=2)}, "no tensor cores"),
        ({"instructions": Counter(HGMMA=16)}, "no TMA loads"),
        ({"listing": 2 * CLEAN_LISTING}, "registers spill around the product: 2"),
    ],
)
def test_each_breach_is_named(judged, found, words):
    (breach,) = judged(**found)
    assert words in breach


def test_what_does_not_compile_is_a_breach(tmp_path):
    line = hopper_resources._judge("kernel", tmp_path / "none.cubin", "AssertionError: sm_90 only")
    assert line["breaches"] == ["does not compile: AssertionError: sm_90 only"]


@pytest.mark.skipif(HAS_QUACK, reason="QuACK is installed here")
def test_without_the_packages_it_says_so(capsys):
    assert hopper_resources.main([]) == hopper_resources.UNUSABLE
    assert "quack and cutlass not installed: pip install 'fastflow[hopper,triton]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_QUACK, reason="needs QuACK: pip install 'fastflow[hopper]'")
def test_all_kernels_pass_the_gate(tmp_path):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.hopper_resources", "--architecture", "90", "--json", str(report)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    lines = json.loads(report.read_text(encoding="utf-8"))["sm_90"]
    assert [line["kernel"] for line in lines] == list(cases())
    assert all(line["in the product"] == 0 < line["HGMMA"] for line in lines)
