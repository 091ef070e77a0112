"""The gate over compiled kernels: how it reads the tools' reports, what it calls a breach, and the gate itself."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench import compile_report, resources
from bench.compile_report import Resources, count_instructions, read_usage, tool
from bench.resource_limits import breaches

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kernels" / "fastflow_kernels"
LIMIT = 232_448
CLEAN = Resources(
    registers=168,
    stack_bytes=0,
    local_bytes=0,
    shared_bytes=98_328,
    tensor_memory_columns=0,
    warps=8,
    instructions=Counter(HGMMA=4, UTMALDG=6, FADD=500),
)
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function first_kernel:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:1160 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function second_kernel:
  REG:218 STACK:0 SHARED:0 LOCAL:8 CONSTANT[0]:592 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LISTING = """
	.section	.text.project_kernel,"ax",@progbits
        .global         STL
.L_x_1:
        /*0e60*/                   @UP3 UTMALDG.2D [UR4], [UR18] ;
        /*0e70*/                   @!P0 STL.64 [R1+0x8], R4 ;
        /*0e80*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24, gsb0 ;
        /*10e90*/                  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], R24 ;
        /*10ea0*/                  UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR4], tmem[UR6], idesc[UR7], UP0 ;
        /*10eb0*/                  LDL R4, [R1+0x8] ;                  /* 0x0000080001047983 */
"""


def test_examples_in_docstrings():
    result = doctest.testmod(compile_report)
    assert result.attempted and not result.failed


def test_what_follows_the_last_product_is_counted():
    assert compile_report.count_epilogue(LISTING) == 2
    assert compile_report.count_epilogue(LISTING.replace("HGMMA", "HMMA")) == 0
    long = dataclasses.replace(CLEAN, epilogue=1251)
    (breach,) = breaches(long, LIMIT, most_epilogue=1250)
    assert "1251 instructions follow the last product" in breach
    assert not breaches(long, LIMIT) and not breaches(CLEAN, LIMIT, most_epilogue=1250)


def test_usage_is_the_most_of_any_function():
    assert read_usage(USAGE) == (218, 16, 8)


def test_a_report_without_usage_is_refused():
    with pytest.raises(ValueError, match="no registers: 'cuobjdump fatal"):
        read_usage("cuobjdump fatal: File is not of type ELF")


def test_instructions_are_counted_by_name():
    found = count_instructions(LISTING)
    assert found == {"UTMALDG": 1, "STL": 1, "HGMMA": 2, "UTCHMMA": 1, "LDL": 1}


def test_patterns_name_families_of_instructions():
    found = dataclasses.replace(CLEAN, instructions=count_instructions(LISTING))
    assert [found.count(pattern) for pattern in ("UTC*MMA", "HMMA", "*MMA", "LDGSTS")] == [1, 0, 3, 0]


def test_a_clean_kernel_has_no_breach():
    assert breaches(CLEAN, LIMIT, needs=("HGMMA", "UTMALDG"), forbids=("LDGSTS",)) == []


@pytest.mark.parametrize(
    ("change", "rules", "words"),
    [
        ({"stack_bytes": 8}, {}, "a stack of 8 bytes"),
        ({"local_bytes": 4}, {}, "4 bytes of local memory"),
        ({"instructions": Counter(STL=3, LDL=2)}, {}, "registers spill: 3 STL, 2 LDL"),
        ({"shared_bytes": LIMIT + 1}, {}, "232449 bytes of shared memory, of which there are 232448"),
        ({"tensor_memory_columns": 1024}, {}, "1024 columns of tensor memory, of which there are 512"),
        ({"warnings": ("C7510: serialized",)}, {}, "the assembler warns, C7510: serialized"),
        ({}, {"needs": ("UTC*MMA",)}, "no tensor cores (UTC*MMA)"),
        ({}, {"needs": ("UTMASTG",)}, "no TMA stores (UTMASTG)"),
        ({}, {"forbids": ("*MMA",)}, "tensor cores (*MMA), which round float32"),
    ],
)
def test_each_breach_is_named(change, rules, words):
    assert breaches(dataclasses.replace(CLEAN, **change), LIMIT, **rules) == [words]


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    assert resources.main([]) == resources.UNUSABLE
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(compile_report.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"nvdisasm is neither .* install the binary utilities"):
        tool("nvdisasm")


@pytest.fixture
def compiling():
    """Runs Python where kernels are compiled, whatever this process does with them."""
    pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")
    for name in compile_report.TOOLS:
        try:
            tool(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


def test_the_gate_fails_where_a_limit_is_exceeded(compiling):
    done = compiling(
        "-c",
        "import sys; from bench import resources; from fastflow_kernels import tiles; tiles.SHARED_MEMORY[90] = 1\n"
        "sys.exit(resources.main(['--architecture', '90', '--kernel', 'combine']))",
    )
    assert done.returncode == resources.BREACH, done.stderr
    assert re.search(r"BREACH: sm_90 combine .*\d+ bytes of shared memory, of which there are 1$", done.stdout, re.M)


def test_the_gate_sees_a_tile_that_spills_and_one_that_does_not_compile(compiling):
    done = compiling(
        "-c",
        "import torch; from bench import kernel_cases; from bench.resources import judge\n"
        "from fastflow_kernels.tiles import Tile\n"
        "for tile in Tile(256, 256, 64, warps=8, stages=3, tma=True), Tile(100, 128, 64, warps=8, stages=3):\n"
        "    case = kernel_cases.project_case(90, kernel_cases.USUAL, torch.bfloat16, False, False, False, tile)\n"
        "    print(judge(case, 90)['breaches'])",
    )
    spills, does_not_compile = done.stdout.splitlines()
    assert "registers spill" in spills and "a stack of" in spills
    assert "does not compile" in does_not_compile and "power of 2" in does_not_compile


@pytest.mark.slow
def test_all_kernels_pass_the_gate(compiling, tmp_path):
    """On the architecture that is measured; CI compiles for the others beside the tests."""
    report = tmp_path / "report.json"
    done = compiling("-m", "bench.resources", "--architecture", "90", "--json", str(report))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    lines = json.loads(report.read_text(encoding="utf-8"))["kernels"]
    assert all(line["spill_instructions"] == line["stack_bytes"] == 0 for line in lines)
    sources = [path for room in ("triton", "hopper") for path in (PACKAGE / room).glob("*.py")]
    defined = {name for path in sources for name in re.findall(r"^def (\w+)_kernel\(", path.read_text(), re.M)}
    assert {line["kernel"] for line in lines} == defined == set(resources.KERNELS)
    hopper = [line for line in lines if line["kernel"] == "project"]
    assert all("HGMMA" in line["tensor_core_instructions"] for line in hopper if "bfloat16" in line["variant"])
    assert all(line["tma_loads"] for line in hopper if "TMA" in line["variant"])
