"""From the two numbers per row and vocabulary tile to two per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_TILES = 32, 64


@triton.jit(do_not_specialize=["row_count"])
def combine_kernel(
    tile_reference,  # (T, R) float32, bits
    tile_total,  # (T, R) float32
    reference,  # (R,) float32, bits
    total,  # (R,) float32
    tile_count,
    row_count,
    BLOCK_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < row_count
    highest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    for start in range(0, tile_count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        places = tiles.to(tl.int64)[:, None] * row_count + rows[None, :]
        inside = (tiles < tile_count)[:, None] & is_row[None, :]
        found = tl.load(tile_reference + places, mask=inside, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(found, 0))
    running = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, tile_count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        places = tiles.to(tl.int64)[:, None] * row_count + rows[None, :]
        inside = (tiles < tile_count)[:, None] & is_row[None, :]
        found = tl.load(tile_reference + places, mask=inside, other=float("-inf"))
        part = tl.load(tile_total + places, mask=inside, other=0.0)
        running += tl.sum(part * tl.exp2(found - highest[None, :]), 0)
    tl.store(reference + rows, highest, mask=is_row)
    tl.store(total + rows, running, mask=is_row)


def combine(tile_reference: Tensor, tile_total: Tensor) -> tuple[Tensor, Tensor]:
    """(T, R), (T, R) -> (R,), (R,): the highest reference of each row, and the sum of its totals against that."""
    tile_count, row_count = tile_reference.shape
    reference, total = torch.empty_like(tile_reference[0]), torch.empty_like(tile_total[0])
    if row_count:
        combine_kernel[(triton.cdiv(row_count, BLOCK_ROWS),)](
            tile_reference,
            tile_total,
            reference,
            total,
            tile_count,
            row_count,
            BLOCK_TILES=BLOCK_TILES,
            BLOCK_ROWS=BLOCK_ROWS,
        )
    return reference, total
