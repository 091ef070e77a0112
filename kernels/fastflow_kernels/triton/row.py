"""One sweep for statistics, one for exponentials, over rows of logits that a library's product has written.

For the types whose products are best left to the vendor's library (float32). One program a row.

Logits of bfloat16 factors arrive in bfloat16, and their exponentials take their place: 2 bytes an entry, where float32
logits beside a bfloat16 matrix are 6. The rounding moves each logit by at most 2^-9 of itself. In the sum over a row
that averages out where many entries share it; where a single one other than the target has nearly all of it, the
log-prob moves by as much as its logit. The target's own logit comes from elsewhere, in float32 (target_logit.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.triton.logit import LEAST_EXPONENT, soft_cap_slope, soft_capped

BLOCK_BYTES = 4096  # of a row at a time: 16 of each thread; 64 spill a register or two with some settings


@triton.jit
def logits_at(logits, bias, row_start, columns, inside, inverse_temperature, softcap, HAS_BIAS, HAS_SOFTCAP):
    """Logits before the temperature, and after it."""
    values = tl.load(logits + row_start + columns, mask=inside, other=float("-inf")).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + columns, mask=inside, other=0.0)
    if HAS_SOFTCAP:
        values = soft_capped(values, softcap)
    return values, values * inverse_temperature


# A block may start at an odd row: its targets must not compile the kernel once more.
@triton.jit(do_not_specialize_on_alignment=["targets"])
def row_kernel(
    logits,  # (R, V) float32 or bfloat16
    bias,  # (V,) float32, or unused
    targets,  # (R,) int64, columns of these logits; outside of them where another shard has them
    target_logit,  # (R,) float32, `absent` for a target that is not here; or unused
    reference,  # (R,) float32: the largest logit of the row
    total,  # (R,) float32: sum of exp(logit - reference), the target's left out
    exponentials,  # (R, V): may be `logits` itself; or unused
    weighted_sum,  # (R,) float32: sum of exp(u) u, u = logit - reference, the target's left out; or unused
    logit_sum,  # (R,) float32, the target's included; or unused
    vocabulary,
    logits_stride,
    exponentials_stride,
    inverse_temperature,
    softcap,
    absent,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
    TAKE_TARGET: tl.constexpr,
    MOMENTS: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_start = row * logits_stride
    target = tl.load(targets + row)
    if TAKE_TARGET:
        is_here = (target >= 0) & (target < vocabulary)
        column = tl.where(is_here, target, 0)
        _own_capped, own_logit = logits_at(  # not _, which the loop below gives another shape
            logits, bias, row_start, column, True, inverse_temperature, softcap, HAS_BIAS, HAS_SOFTCAP
        )
        tl.store(target_logit + row, tl.where(is_here, own_logit, absent))

    highest = tl.full((BLOCK_VOCABULARY,), float("-inf"), tl.float32)
    running = tl.zeros((BLOCK_VOCABULARY,), tl.float32)
    running_weighted = tl.zeros((BLOCK_VOCABULARY,), tl.float32)
    running_logits = tl.zeros((BLOCK_VOCABULARY,), tl.float32)
    for start in range(0, vocabulary, BLOCK_VOCABULARY):
        columns = start + tl.arange(0, BLOCK_VOCABULARY)
        inside = columns < vocabulary
        _, scaled = logits_at(
            logits, bias, row_start, columns, inside, inverse_temperature, softcap, HAS_BIAS, HAS_SOFTCAP
        )
        higher = tl.maximum(highest, tl.where(inside, scaled, float("-inf")))
        # lanes that have seen nothing yet hold -inf: exp(-inf - -inf) is nan, so they measure against 0
        against = tl.where(higher == float("-inf"), 0.0, higher)
        others = tl.where(inside & (columns != target), scaled, float("-inf"))
        if MOMENTS:
            shift = tl.maximum(highest - against, LEAST_EXPONENT)
            running_weighted = (running_weighted + running * shift) * tl.exp(highest - against)
            running_weighted += tl.exp(others - against) * tl.maximum(others - against, LEAST_EXPONENT)
            running_logits += tl.where(inside, scaled, 0.0)
        running = running * tl.exp(highest - against) + tl.exp(others - against)
        highest = higher
    row_reference = tl.max(highest, 0)
    against = tl.where(highest == float("-inf"), 0.0, row_reference)
    row_total = tl.sum(running * tl.exp(highest - against), 0)
    tl.store(reference + row, row_reference)
    tl.store(total + row, row_total)
    if MOMENTS:
        shift = tl.maximum(highest - against, LEAST_EXPONENT)
        running_weighted = (running_weighted + running * shift) * tl.exp(highest - against)
        tl.store(weighted_sum + row, tl.sum(running_weighted, 0))
        tl.store(logit_sum + row, tl.sum(running_logits, 0))

    if STORE:
        measured = tl.where(row_reference == float("-inf"), 0.0, row_reference)  # a row of which nothing can be drawn
        for start in range(0, vocabulary, BLOCK_VOCABULARY):
            columns = start + tl.arange(0, BLOCK_VOCABULARY)
            inside = columns < vocabulary
            capped, scaled = logits_at(
                logits, bias, row_start, columns, inside, inverse_temperature, softcap, HAS_BIAS, HAS_SOFTCAP
            )
            values = tl.exp(scaled - measured)
            if HAS_SOFTCAP:
                values *= soft_cap_slope(capped, softcap)
            values = tl.where(columns == target, 0.0, values)
            pointers = exponentials + row * exponentials_stride + columns
            tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=inside)


def row_pass(
    logits: Tensor,
    head: Head,
    targets: Tensor,
    exponentials: Tensor | None,
    target_logit: Tensor | None = None,
    *,
    with_moments: bool = False,
) -> tuple[Tensor, ...]:
    """(target_logit, reference, total), each (R,) float32, nats; fills `exponentials` (R, V), which may be `logits`.

    logits: (R, V) float32 or bfloat16, hidden @ weight^T alone: bias, soft-cap and temperature are applied here.
    target_logit: (R,) float32, nats, where the caller has it more exactly than `logits`: it is handed back as it is.
    with_moments: returns two more, the sums of exponential times exponent, the target's left out, and of all logits.
    """
    row_count, vocabulary = logits.shape
    own_logit = logits.new_empty(row_count, dtype=torch.float32) if target_logit is None else target_logit
    outputs = (own_logit, *(torch.empty_like(own_logit) for _ in range(4 if with_moments else 2)))
    if row_count:
        row_kernel[(row_count,)](
            logits,
            head.bias,
            targets,
            *outputs[:3],
            exponentials,
            *(outputs[3:] or (None, None)),
            vocabulary,
            logits.stride(0),
            0 if exponentials is None else exponentials.stride(0),
            1.0 / head.temperature,
            head.softcap or 0.0,
            head.absent_logit,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            STORE=exponentials is not None,
            TAKE_TARGET=target_logit is None,
            MOMENTS=with_moments,
            BLOCK_VOCABULARY=min(BLOCK_BYTES // logits.itemsize, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )
    return outputs
