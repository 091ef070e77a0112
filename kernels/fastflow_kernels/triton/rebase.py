"""Brings exponentials that were taken against the target's logit to a higher reference of their row.

Nearly always there is nothing to do (project.py says why) and a program ends after reading its references. The first
programs of the rows also finish them (finish.py): so the target's entry is theirs, and all others leave it alone.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.triton.excess import Totals, is_excess, tile_logits
from fastflow_kernels.triton.finish import finish_rows
from fastflow_kernels.triton.logit import bits_per_logit, soft_cap_slope

BLOCK_ROWS, BLOCK_TILES, BLOCK_WIDTH = 16, 64, 32


@triton.jit(do_not_specialize=["row_count"], do_not_specialize_on_alignment=["targets", "logprob"])
def rebase_kernel(
    exponentials,  # (R, V)
    tile_total,  # (T, R) float32
    target_logit,  # (R,) float32, bits
    reference,  # (R,) float32, bits
    sum_of_others,  # (R,) float32, against the reference, as finish.py has it and the next two
    logprob,  # (R,) float32, out
    factor,  # (R,) float32, out
    hidden,  # (R, D), as what follows for tiles whose exponentials are no use
    weight,  # (V, D)
    bias,  # (V,) float32, or unused
    targets,  # (R,) int64, columns of this head
    tile_count,
    row_count,
    vocabulary,
    width,
    exponentials_stride,
    total_stride,
    row_stride,
    hidden_stride,
    weight_stride,
    scale,
    nats,
    temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows < row_count
    if tl.program_id(1) == 0:
        finish_rows(
            rows,
            is_row,
            target_logit,
            reference,
            sum_of_others,
            targets,
            logprob,
            factor,
            exponentials,
            vocabulary,
            exponentials_stride,
            nats,
            temperature,
            softcap,
            HAS_SOFTCAP,
            True,
        )
    goal = tl.load(reference + rows, mask=is_row, other=0.0)
    shift = tl.load(target_logit + rows, mask=is_row, other=0.0) - goal
    if tl.max((shift != 0.0).to(tl.int32), 0) > 0:
        target = tl.load(targets + rows, mask=is_row, other=-1)
        first_tile = tl.program_id(1).to(tl.int64) * BLOCK_TILES
        for step in range(0, min(BLOCK_TILES, tile_count - first_tile)):
            tile = first_tile + step
            within = tl.arange(0, BLOCK_VOCABULARY)
            columns = tile * TILE + within
            is_column = (within < TILE) & (columns < vocabulary)
            pointers = exponentials + rows.to(tl.int64)[:, None] * exponentials_stride + columns[None, :]
            place = tile * total_stride + rows.to(tl.int64) * row_stride
            is_out = is_excess(tl.load(tile_total + place, mask=is_row, other=0.0))
            is_other = is_column[None, :] & (columns[None, :] != target[:, None])
            is_entry = (is_row & ~is_out)[:, None] & is_other
            values = tl.load(pointers, mask=is_entry, other=0.0).to(tl.float32) * tl.exp2(shift)[:, None]
            tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=is_entry)
            if tl.max(is_out.to(tl.int32), 0) > 0:
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
                values = tl.exp2(logits * scale - goal[:, None])
                if HAS_SOFTCAP:
                    values *= soft_cap_slope(logits, softcap)
                is_entry = (is_row & is_out)[:, None] & is_other
                tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=is_entry)


def rebase_and_finish_(
    exponentials: Tensor,
    totals: Totals,
    statistics: RowStatistics,
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    logprob: Tensor,
    factor: Tensor,
) -> None:
    """Make directions of exponentials (R, V), whose reference is the target's logit; fill logprob and factor, (R,).

    statistics: of the rows, in bits, against the reference that is wanted. hidden (R, D) and targets (R,) of the rows.
    """
    row_count = exponentials.shape[0]
    tile_count = totals.total.shape[0]
    if row_count:
        rebase_kernel[(triton.cdiv(row_count, BLOCK_ROWS), triton.cdiv(tile_count, BLOCK_TILES))](
            exponentials,
            totals.total,
            statistics.target_logit,
            statistics.reference,
            statistics.sum_of_others,
            logprob,
            factor,
            hidden,
            head.weight,
            head.bias,
            targets,
            tile_count,
            row_count,
            head.vocabulary,
            hidden.shape[1],
            exponentials.stride(0),
            *totals.total.stride(),
            hidden.stride(0),
            head.weight.stride(0),
            bits_per_logit(head),
            statistics.scale,
            head.temperature,
            head.softcap or 0.0,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            TILE=totals.width,
            BLOCK_VOCABULARY=triton.next_power_of_2(totals.width),
            BLOCK_TILES=BLOCK_TILES,
            BLOCK_ROWS=BLOCK_ROWS,
            BLOCK_WIDTH=BLOCK_WIDTH,
            UPCAST=hidden.device.type == "cpu",
            num_warps=8,
        )
