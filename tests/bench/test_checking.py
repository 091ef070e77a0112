"""Every Triton kernel under the checking interpreter, without a finding; planted defects, each of them found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packaging.version import Version

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

import triton

from bench.checking import cases as table
from bench.checking.defects import DEFECTS, Defect
from bench.checking.planting import caught, planted

NEEDS_OLDER_NUMPY = Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here: python -m bench.checking"),
    pytest.mark.skipif(NEEDS_OLDER_NUMPY, reason="the interpreter of triton 3.6: pip install 'numpy<2.4'"),
]
CASES = table.cases()


@pytest.mark.slow
def test_no_kernel_has_a_finding_and_each_has_a_case():
    found = {name: [str(finding) for finding in case.run()] for name, case in CASES.items()}
    assert not {name: lines for name, lines in found.items() if lines}
    assert table.gaps_in_the_table(CASES.values()) == []


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_planted_defect_is_found(defect):
    assert caught(defect, CASES)


def test_a_defect_whose_line_is_gone_cannot_be_planted():
    stale = Defect("combine.py", "a line that nobody wrote", "", "huge combine")
    with (
        pytest.raises(LookupError, match=r"fastflow_kernels/triton/combine.py has no 'a line .*defects.py must plant"),
        planted(stale),
    ):
        pass


def test_a_planted_defect_is_gone_afterwards():
    defect = next(defect for defect in DEFECTS if defect.case == "rebase ragged")
    assert caught(defect, CASES)
    assert not list(CASES["rebase ragged"].run())


def test_a_kernel_without_a_case_is_named(monkeypatch):
    monkeypatch.setattr(table, "defined_kernels", lambda: {"new_kernel"})
    assert table.gaps_in_the_table([])[0] == "no case launches new_kernel: add one to op_cases.py or launch_cases.py"
