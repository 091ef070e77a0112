"""From the numbers per row and vocabulary tile to those per row."""

import torch
import triton
import triton.language as tl
from fastflow_kernels.gpu.logit import LEAST_EXPONENT
from fastflow_kernels.gpu.project import TileStatistics

BLOCK_ROWS, BLOCK_TILES = 32, 64


@triton.jit(do_not_specialize=["row_count"])
def combine_kernel(
    tile_reference,  # (T, R) float32, bits
    tile_total,  # (T, R) float32
    reference,  # (R,) float32, bits
    total,  # (R,) float32
    tile_weighted,  # (T, R) float32, bits, or unused, as the next three
    tile_logits,  # (T, R) float32
    weighted,  # (R,) float32, bits
    logit_sum,  # (R,) float32
    tile_count,
    row_count,
    MOMENTS: tl.constexpr,
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
    running_weighted = tl.zeros((BLOCK_ROWS,), tl.float32)
    running_logits = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, tile_count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        places = tiles.to(tl.int64)[:, None] * row_count + rows[None, :]
        inside = (tiles < tile_count)[:, None] & is_row[None, :]
        found = tl.load(tile_reference + places, mask=inside, other=float("-inf"))
        part = tl.load(tile_total + places, mask=inside, other=0.0)
        shift = found - highest[None, :]
        running += tl.sum(part * tl.exp2(shift), 0)
        if MOMENTS:
            own = tl.load(tile_weighted + places, mask=inside, other=0.0)
            own = (own + part * tl.maximum(shift, LEAST_EXPONENT)) * tl.exp2(shift)
            running_weighted += tl.sum(own, 0)
            running_logits += tl.sum(tl.load(tile_logits + places, mask=inside, other=0.0), 0)
    tl.store(reference + rows, highest, mask=is_row)
    tl.store(total + rows, running, mask=is_row)
    if MOMENTS:
        tl.store(weighted + rows, running_weighted, mask=is_row)
        tl.store(logit_sum + rows, running_logits, mask=is_row)


def combine(tiles: TileStatistics) -> TileStatistics:
    """(T, R) -> (R,): the highest reference of each row, and the sums of the rest, measured against that."""
    tile_count, row_count = tiles.reference.shape
    rows = TileStatistics(*(None if values is None else torch.empty_like(values[0]) for values in tiles))
    if row_count:
        combine_kernel[(triton.cdiv(row_count, BLOCK_ROWS),)](
            tiles.reference,
            tiles.total,
            rows.reference,
            rows.total,
            tiles.weighted,
            tiles.logit_sum,
            rows.weighted,
            rows.logit_sum,
            tile_count,
            row_count,
            MOMENTS=tiles.weighted is not None,
            BLOCK_TILES=BLOCK_TILES,
            BLOCK_ROWS=BLOCK_ROWS,
        )
    return rows
