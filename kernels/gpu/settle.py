"""Brings exponentials that tiles took against different references to the one reference of their row.

Nearly always there is nothing to do (project.py says why) and a program ends after reading its references.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 32


@triton.jit(do_not_specialize=["row_count"])
def settle_kernel(
    exponentials,  # (R, V)
    tile_reference,  # (T, R) float32
    reference,  # (R,) float32
    row_count,
    vocabulary,
    exponentials_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
):
    tile = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < row_count
    shift = tl.load(tile_reference + tile * row_count + rows, mask=is_row, other=0.0)
    shift -= tl.load(reference + rows, mask=is_row, other=0.0)
    if tl.max(tl.where(shift != 0.0, 1, 0), 0) > 0:
        columns = tile * BLOCK_VOCABULARY + tl.arange(0, BLOCK_VOCABULARY)
        pointers = exponentials + rows.to(tl.int64)[:, None] * exponentials_stride + columns[None, :]
        is_entry = is_row[:, None] & (columns < vocabulary)[None, :]
        values = tl.load(pointers, mask=is_entry, other=0.0).to(tl.float32) * tl.exp(shift)[:, None]
        tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=is_entry)


def settle_(exponentials: Tensor, tile_reference: Tensor, reference: Tensor, tile_vocabulary: int) -> None:
    """Multiplies the tiles of (R, V) by exp(tile_reference (T, R) - reference (R,)), where that is not one."""
    row_count, vocabulary = exponentials.shape
    if row_count:
        settle_kernel[(triton.cdiv(row_count, BLOCK_ROWS), tile_reference.shape[0])](
            exponentials,
            tile_reference,
            reference,
            row_count,
            vocabulary,
            exponentials.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_VOCABULARY=tile_vocabulary,
        )
