"""Adds the sums per row and vocabulary tile up to those per row."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.triton.excess import Totals, is_excess, tile_logits
from fastflow_kernels.triton.logit import LEAST_EXPONENT, LEAST_LOGIT, bits_per_logit

BLOCK_ROWS, BLOCK_TILES, BLOCK_WIDTH = 16, 64, 32


@triton.jit(do_not_specialize=["row_count"], do_not_specialize_on_alignment=["targets"])
def combine_kernel(
    tile_total,  # (T, R) float32
    target_product,  # (R,) float32, of targets whose terms are in the totals; or unused
    target_logit,  # (R,) float32, bits
    reference,  # (R,) float32, bits
    total,  # (R,) float32
    tile_weighted,  # (T, R) float32, bits, or unused, as the next three
    tile_logit_sum,  # (T, R) float32
    weighted,  # (R,) float32, bits
    logit_sum,  # (R,) float32
    hidden,  # (R, D), as what follows for tiles whose total is no use
    weight,  # (V, D)
    bias,  # (V,) float32, or unused
    targets,  # (R,) int64, columns of this head
    tile_count,
    row_count,
    vocabulary,
    width,
    total_stride,
    row_stride,
    hidden_stride,
    weight_stride,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TARGET_INSIDE: tl.constexpr,
    MOMENTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < row_count
    own_logit = tl.load(target_logit + rows, mask=is_row, other=0.0)
    is_known = own_logit == own_logit  # without a target there is nothing to measure
    # a target that cannot be drawn has no finite exponential to measure against
    highest = tl.where(own_logit == float("-inf"), LEAST_LOGIT, own_logit)
    running = tl.zeros((BLOCK_ROWS,), tl.float32)
    running_weighted = tl.zeros((BLOCK_ROWS,), tl.float32)
    running_logits = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, tile_count, BLOCK_TILES):
        tiles = start + tl.arange(0, BLOCK_TILES)
        places = tiles.to(tl.int64)[:, None] * total_stride + rows.to(tl.int64)[None, :] * row_stride
        inside = (tiles < tile_count)[:, None] & is_row[None, :]
        parts = tl.load(tile_total + places, mask=inside, other=0.0)
        out_of_range = is_excess(parts) & is_known[None, :]
        shift = own_logit - highest  # 0, unless an earlier tile has been taken again
        in_range = tl.sum(tl.where(out_of_range, 0.0, parts), 0)
        running += in_range * tl.exp2(shift)
        if MOMENTS:
            own_weighted = tl.load(tile_weighted + places, mask=inside, other=0.0)
            own_weighted = tl.sum(tl.where(out_of_range, 0.0, own_weighted), 0)
            running_weighted += (own_weighted + in_range * tl.maximum(shift, LEAST_EXPONENT)) * tl.exp2(shift)
            running_logits += tl.sum(tl.load(tile_logit_sum + places, mask=inside, other=0.0), 0)
        if tl.max(tl.max(out_of_range.to(tl.int32), 1), 0) > 0:
            for step in range(0, min(BLOCK_TILES, tile_count - start)):
                tile = start + step + tl.zeros((BLOCK_ROWS,), tl.int64)
                part = tl.load(
                    tile_total + tile * total_stride + rows.to(tl.int64) * row_stride, mask=is_row, other=0.0
                )
                is_out = is_excess(part) & is_known
                if tl.max(is_out.to(tl.int32), 0) > 0:
                    within = tl.arange(0, BLOCK_VOCABULARY)
                    columns = (start + step) * TILE + within
                    is_column = (within < TILE) & (columns < vocabulary)
                    logits = tile_logits(
                        hidden,
                        weight,
                        bias,
                        rows,
                        columns,
                        is_row,
                        is_column,
                        width,
                        hidden_stride,
                        weight_stride,
                        softcap,
                        HAS_BIAS,
                        HAS_SOFTCAP,
                        BLOCK_ROWS,
                        BLOCK_VOCABULARY,
                        BLOCK_WIDTH,
                        UPCAST,
                    )
                    target = tl.load(targets + rows, mask=is_row, other=-1)
                    counts = is_out[:, None] & is_column[None, :] & (columns[None, :] != target[:, None])
                    bits = tl.where(counts, logits * scale, float("-inf"))
                    higher = tl.maximum(highest, tl.max(bits, 1))
                    values = tl.exp2(bits - higher[:, None])
                    if MOMENTS:
                        rise = tl.maximum(highest - higher, LEAST_EXPONENT)
                        running_weighted = (running_weighted + running * rise) * tl.exp2(highest - higher)
                        exponents = tl.maximum(bits - higher[:, None], LEAST_EXPONENT)
                        running_weighted += tl.sum(values * exponents, 1)
                    running = running * tl.exp2(highest - higher) + tl.sum(values, 1)
                    highest = higher
    if TARGET_INSIDE:
        column = tl.load(targets + rows, mask=is_row, other=-1)
        is_here = is_row & (column >= 0) & (column < vocabulary)
        place = (tl.where(is_here, column, 0) // TILE) * total_stride + rows.to(tl.int64) * row_stride
        part = tl.load(tile_total + place, mask=is_here, other=0.0)
        product = tl.load(target_product + rows, mask=is_here, other=0.0)
        # the exponent rounded once, as it went in: else a nearly certain target would leave a rounding of its logit
        term = tl.exp2((product.to(tl.float64) * scale - own_logit).to(tl.float32))
        left = running - tl.where(is_here & ~is_excess(part), term * tl.exp2(own_logit - highest), 0.0)
        running = tl.where(left < 0.0, 0.0, left)  # not a maximum, in which nan would get lost
    tl.store(reference + rows, highest, mask=is_row)
    tl.store(total + rows, running, mask=is_row)
    if MOMENTS:
        tl.store(weighted + rows, running_weighted, mask=is_row)
        tl.store(logit_sum + rows, running_logits, mask=is_row)


class CombinedStatistics(NamedTuple):
    """(R,) float32 each; the last two where the tiles have them."""

    reference: Tensor  # the target's logit, in bits, or the largest where that stands far above it
    total: Tensor  # sum of 2^(z - reference) over the other columns
    weighted: Tensor | None  # sum of exponential times exponent over the other columns, bits
    logit_sum: Tensor | None  # over all columns, before the scale


def combine(totals: Totals, target_logit: Tensor, hidden: Tensor, head: Head, targets: Tensor) -> CombinedStatistics:
    """hidden (R, D), target_logit and targets (R,): of the rows that the totals are of."""
    tile_count, row_count = totals.total.shape
    further = (None if values is None else torch.empty_like(target_logit) for values in totals[3:])
    rows = CombinedStatistics(torch.empty_like(target_logit), torch.empty_like(target_logit), *further)
    if row_count:
        combine_kernel[(triton.cdiv(row_count, BLOCK_ROWS),)](
            totals.total,
            totals.target_product,
            target_logit,
            rows.reference,
            rows.total,
            totals.weighted,
            totals.logit_sum,
            rows.weighted,
            rows.logit_sum,
            hidden,
            head.weight,
            head.bias,
            targets,
            tile_count,
            row_count,
            head.vocabulary,
            hidden.shape[1],
            *totals.total.stride(),
            hidden.stride(0),
            head.weight.stride(0),
            bits_per_logit(head),
            head.softcap or 0.0,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            TARGET_INSIDE=totals.target_product is not None,
            MOMENTS=totals.weighted is not None,
            TILE=totals.width,
            BLOCK_VOCABULARY=triton.next_power_of_2(totals.width),
            BLOCK_TILES=BLOCK_TILES,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_WIDTH=BLOCK_WIDTH,
            UPCAST=hidden.device.type == "cpu",
            num_warps=8,
            num_stages=1,  # tiles are rarely taken again: more would cost registers that every program has
        )
    return rows
