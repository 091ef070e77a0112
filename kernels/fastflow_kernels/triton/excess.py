"""Tiles in which a logit stands so far above the target's that exponentials against that are no use.

Their total is above LIMIT, or no number. They are rare, so that what needs them (combine.py, rebase.py) finds them by
their totals and takes their logits once more.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.triton.logit import soft_capped


class Totals(NamedTuple):
    """What a projection leaves of a block's tiles."""

    total: Tensor  # (T, R) float32: by tile, the sum of 2^(z - z_t) over its columns
    width: int  # columns of a tile, the last of which may be narrower
    target_product: Tensor | None = None  # (R,) float32: the target's, where its term is in the sums and must go
    weighted: Tensor | None = None  # (T, R) float32, bits: the sum of 2^u u, u = z - z_t, the target's left out
    logit_sum: Tensor | None = None  # (T, R) float32: the sum of the logits before the scale, the target's included


LIMIT = tl.constexpr(2.0**60)  # 41 nats. Sums of as large terms, and one over them, are numbers in bfloat16, too.


@triton.jit
def is_excess(total):
    return (total > LIMIT) | (total != total)


@triton.jit
def tile_logits(
    hidden,  # (R, D)
    weight,  # (V, D)
    bias,  # (V,) float32, or unused
    rows,  # (BLOCK_ROWS,), of this tile
    columns,  # (BLOCK_VOCABULARY,)
    is_row,
    is_column,
    width,
    hidden_stride,
    weight_stride,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,  # for the interpreter, which multiplies bfloat16 wrongly
):
    """Logits ahead of the temperature, (BLOCK_ROWS, BLOCK_VOCABULARY)."""
    logits = tl.zeros((BLOCK_ROWS, BLOCK_VOCABULARY), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        positions = start + tl.arange(0, BLOCK_WIDTH)
        inside = positions < width
        left = tl.load(
            hidden + rows.to(tl.int64)[:, None] * hidden_stride + positions[None, :],
            mask=is_row[:, None] & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            weight + columns.to(tl.int64)[None, :] * weight_stride + positions[:, None],
            mask=is_column[None, :] & inside[:, None],
            other=0.0,
        )
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        logits = tl.dot(left, right, logits, input_precision="ieee")
    if HAS_BIAS:
        logits += tl.load(bias + columns, mask=is_column, other=0.0)[None, :]
    if HAS_SOFTCAP:
        logits = soft_capped(logits, softcap)
    return logits
