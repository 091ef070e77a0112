"""The page that leads through one kernel call lists the files that a real call opens, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

from opened_files import PACKAGE, fused_flow_loss, opened_files

PAGE = Path(__file__).parents[2] / "docs" / "anatomy-of-a-kernel-call.md"
ROW = re.compile(r"^\| (\d+) \| `kernels/fastflow_kernels/([\w/]+\.py)` \| \w.* \|$", re.MULTILINE)
FIRST_KERNEL = "triton/target_logit.py"


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs the interpreter of triton, which a GPU's machine leaves off"
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's bfloat16 numbers mean nothing
def test_the_page_lists_what_a_call_opens():
    listed = ROW.findall(PAGE.read_text(encoding="utf-8"))
    found = opened_files(fused_flow_loss)
    assert [(int(number), file) for number, file in listed] == list(enumerate(found, start=1))
    before_the_first_kernel = found.index(FIRST_KERNEL)
    counts = f"It enters {len(found)} now, {before_the_first_kernel} of them ahead of it."
    assert counts in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_a_file_is_opened_by_a_function_of_it():
    """And by no import, nor by functions of other packages."""
    from fastflow_kernels import blocks

    assert opened_files(lambda: blocks.row_blocks(5, 2)) == ["blocks.py"]
    assert opened_files(lambda: torch.zeros(2).sum()) == []
    assert (PACKAGE / "blocks.py").exists()
