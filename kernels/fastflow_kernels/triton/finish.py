"""Turns the numbers of each row into its log-prob, its direction's factor and the direction's entry at the target.

row_statistics.py has the formulas. In float64, whose rate does not matter for (R,) numbers.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.row_statistics import FAR_BELOW as FAR_BELOW_NATS
from fastflow_kernels.row_statistics import RowStatistics

BLOCK_ROWS = 128
FAR_BELOW = tl.constexpr(FAR_BELOW_NATS)
SMALL = tl.constexpr(1e-6)  # below it 1 + x has lost more digits of x than the series log1p(x) = x - x^2 / 2 omits


@triton.jit
def finish_rows(
    rows,  # (BLOCK_ROWS,)
    is_row,
    target_logit,  # (R,) float32, as the next two
    reference,
    sum_of_others,
    columns,  # (R,) int64, the targets' columns in `direction`; outside of it where another shard has them
    logprob,  # (R,) float32
    factor,  # (R,) float32, or unused
    direction,  # (R, V), or unused
    vocabulary,
    direction_stride,
    scale,
    temperature,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
):
    own = tl.load(target_logit + rows, mask=is_row, other=0.0)
    below = (own.to(tl.float64) - tl.load(reference + rows, mask=is_row, other=0.0).to(tl.float64)) * scale
    others = tl.load(sum_of_others + rows, mask=is_row, other=1.0).to(tl.float64)
    is_near = below > FAR_BELOW
    odds = others * tl.exp(-tl.where(is_near, below, 0.0))
    near = -tl.where(odds < SMALL, odds - 0.5 * odds * odds, tl.log(1.0 + odds))
    total = others + tl.exp(below)
    tl.store(logprob + rows, tl.where(is_near, near, below - tl.log(total)).to(tl.float32), mask=is_row)
    if STORE:
        tl.store(factor + rows, (-1.0 / (total * temperature)).to(tl.float32), mask=is_row)
        entry = -others
        if HAS_SOFTCAP:
            capped = own.to(tl.float64) * scale * temperature / softcap
            entry = entry * (1.0 - capped * capped)
        column = tl.load(columns + rows, mask=is_row, other=-1)
        is_here = (column >= 0) & (column < vocabulary)
        pointers = direction + rows.to(tl.int64) * direction_stride + tl.where(is_here, column, 0)
        tl.store(pointers, entry.to(tl.float32).to(direction.dtype.element_ty), mask=is_row & is_here)


# A block may start at an odd row.
@triton.jit(do_not_specialize=["row_count"], do_not_specialize_on_alignment=["columns", "logprob"])
def finish_kernel(
    target_logit,
    reference,
    sum_of_others,
    columns,
    logprob,
    factor,
    direction,
    row_count,
    vocabulary,
    direction_stride,
    scale,
    temperature,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    finish_rows(
        rows,
        rows < row_count,
        target_logit,
        reference,
        sum_of_others,
        columns,
        logprob,
        factor,
        direction,
        vocabulary,
        direction_stride,
        scale,
        temperature,
        softcap,
        HAS_SOFTCAP,
        STORE,
    )


def finish(
    statistics: RowStatistics,
    head: Head,
    columns: Tensor,
    logprob: Tensor,
    factor: Tensor | None,
    direction: Tensor | None,
) -> None:
    """Fill logprob (R,); with a direction (R, V), also factor (R,) and the direction's entries at the targets.

    columns: (R,) int64, targets as columns of this head; a direction's entry is left as it is where another shard has
    the target.
    """
    row_count = logprob.shape[0]
    if row_count:
        finish_kernel[(triton.cdiv(row_count, BLOCK_ROWS),)](
            statistics.target_logit,
            statistics.reference,
            statistics.sum_of_others,
            columns,
            logprob,
            factor,
            direction,
            row_count,
            head.vocabulary,
            0 if direction is None else direction.stride(0),
            statistics.scale,
            head.temperature,
            head.softcap or 0.0,
            HAS_SOFTCAP=head.softcap is not None,
            STORE=direction is not None,
            BLOCK_ROWS=BLOCK_ROWS,
        )
