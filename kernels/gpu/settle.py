"""Brings exponentials that tiles took against different references to the one reference of their row.

Nearly always there is nothing to do (project.py says why) and a program ends after reading its references.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_TILES = 32, 64


@triton.jit(do_not_specialize=["row_count"])
def settle_kernel(
    exponentials,  # (R, V)
    tile_reference,  # (T, R) float32, bits
    reference,  # (R,) float32, bits
    row_count,
    tile_count,
    vocabulary,
    exponentials_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < row_count
    first_tile = tl.program_id(1).to(tl.int64) * BLOCK_TILES
    tiles = first_tile + tl.arange(0, BLOCK_TILES)
    is_tile = (tiles < tile_count)[:, None] & is_row[None, :]
    goal = tl.load(reference + rows, mask=is_row, other=0.0)
    found = tl.load(tile_reference + tiles[:, None] * row_count + rows[None, :], mask=is_tile, other=0.0)
    if tl.max(tl.max(tl.where(is_tile & (found != goal[None, :]), 1, 0), 1), 0) > 0:
        for step in range(0, min(BLOCK_TILES, tile_count - first_tile)):
            tile = first_tile + step
            own = tl.load(tile_reference + tile * row_count + rows, mask=is_row, other=0.0)
            shift = tl.where(is_row, own - goal, 0.0)
            if tl.max(tl.where(shift != 0.0, 1, 0), 0) > 0:
                columns = tile * BLOCK_VOCABULARY + tl.arange(0, BLOCK_VOCABULARY)
                pointers = exponentials + rows.to(tl.int64)[:, None] * exponentials_stride + columns[None, :]
                is_entry = is_row[:, None] & (columns < vocabulary)[None, :]
                values = tl.load(pointers, mask=is_entry, other=0.0).to(tl.float32) * tl.exp2(shift)[:, None]
                tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=is_entry)


def settle_(exponentials: Tensor, tile_reference: Tensor, reference: Tensor, tile_vocabulary: int) -> None:
    """Multiplies the tiles of (R, V) by 2^(tile_reference (T, R) - reference (R,)), where that is not one."""
    row_count, vocabulary = exponentials.shape
    tile_count = tile_reference.shape[0]
    if row_count:
        settle_kernel[(triton.cdiv(row_count, BLOCK_ROWS), triton.cdiv(tile_count, BLOCK_TILES))](
            exponentials,
            tile_reference,
            reference,
            row_count,
            tile_count,
            vocabulary,
            exponentials.stride(0),
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_TILES=BLOCK_TILES,
            BLOCK_VOCABULARY=tile_vocabulary,
        )
