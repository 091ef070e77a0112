"""What the projection asks of the memory of its operands."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels.head import Head
from fastflow_kernels.tiles import Tile, has_aligned_rows, has_whole_chunks


def exponentials(stride: int, entries: int | None = None, rows: int = 3, vocabulary: int = 70) -> torch.Tensor:
    """(3, 70) in bfloat16, in a storage of so many entries; None for whole rows."""
    memory = torch.zeros(rows * stride if entries is None else entries, dtype=torch.bfloat16)
    return memory.as_strided((rows, vocabulary), (stride, 1))


@pytest.mark.parametrize(
    ("matrix", "is_aligned", "is_whole"),
    [
        (exponentials(72), True, True),
        (exponentials(80), True, True),
        (exponentials(70), False, False),
        (exponentials(72, entries=2 * 72 + 70), True, False),  # the last row ends with the memory
        (exponentials(72)[1:], True, True),
        (exponentials(64, vocabulary=64), True, True),
        (exponentials(73), False, True),
    ],
)
def test_aligned_rows_and_whole_chunks(matrix, is_aligned, is_whole):
    assert (has_aligned_rows(matrix), has_whole_chunks(matrix)) == (is_aligned, is_whole)


def test_a_tma_store_behind_the_memory_of_the_last_row_is_refused():
    pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")
    from fastflow_kernels.triton.project import project

    hidden, head = torch.zeros(3, 8, dtype=torch.bfloat16), Head(torch.zeros(70, 8, dtype=torch.bfloat16), None)
    tile = Tile(64, 64, 64, warps=4, stages=1, tma=True)
    with pytest.raises(AssertionError, match="rows of whole 16-byte chunks"):
        project(hidden, head, torch.zeros(3).long(), torch.zeros(3), tile, exponentials(72, entries=2 * 72 + 70))
