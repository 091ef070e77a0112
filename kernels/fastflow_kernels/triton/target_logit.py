"""The logit of each row's target alone: a gathered dot product, so that the projection can measure against it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.triton.logit import bits_per_logit, soft_capped

BLOCK_WIDTH = 1024


@triton.jit(do_not_specialize_on_alignment=["targets"])  # a block may start at an odd row
def target_logit_kernel(
    hidden,  # (R, D)
    weight,  # (V, D)
    bias,  # (V,) float32, or unused
    targets,  # (R,) int64, columns of this head; outside of it where another shard has them
    out,  # (R,) float32, bits
    part_columns,  # (P, R) int32, out: targets counted from the first column of each part; or unused
    width,
    vocabulary,
    hidden_stride,
    weight_stride,
    part_stride,
    part_width,
    scale,
    softcap,
    absent,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    is_here = (target >= 0) & (target < vocabulary)
    column = tl.where(is_here, target, 0)
    total = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        positions = start + tl.arange(0, BLOCK_WIDTH)
        inside = positions < width
        left = tl.load(hidden + row * hidden_stride + positions, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(weight + column * weight_stride + positions, mask=inside, other=0.0).to(tl.float32)
        total += left * right
    logit = tl.sum(total, 0)
    if HAS_BIAS:
        logit += tl.load(bias + column)
    if HAS_SOFTCAP:
        logit = soft_capped(logit, softcap)
    tl.store(out + row, tl.where(is_here, logit * scale, absent))
    for part in tl.static_range(PARTS):
        tl.store(part_columns + part * part_stride + row, (target - part * part_width).to(tl.int32))


def target_logits(
    hidden: Tensor, head: Head, targets: Tensor, part_columns: Tensor | None = None, part_width: int = 0
) -> Tensor:
    """(R,) float32 logits of the targets, in bits; head.absent_logit for one that is not a column of this head.

    part_columns: (P, R) int32, filled with the targets counted from the first column of each part of the head, where
    such are wanted; part_width: columns of all parts but the last.
    """
    out = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    if hidden.shape[0]:
        target_logit_kernel[(hidden.shape[0],)](
            hidden,
            head.weight,
            head.bias,
            targets,
            out,
            part_columns,
            hidden.shape[1],
            head.vocabulary,
            hidden.stride(0),
            head.weight.stride(0),
            0 if part_columns is None else part_columns.stride(0),
            part_width,
            bits_per_logit(head),
            head.softcap or 0.0,
            head.absent_logit,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            PARTS=0 if part_columns is None else part_columns.shape[0],
            BLOCK_WIDTH=min(BLOCK_WIDTH, triton.next_power_of_2(hidden.shape[1])),
        )
    return out
