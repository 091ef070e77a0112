"""Computes all that the flow loss needs per sequence, for the sequences of a block of rows, in one launch.

One program a sequence: it sums the log-probs of the sequence's rows in this block onto what earlier blocks left. At the
sequence's end it forms residual, importance (the clipped ratio), loss and gradients. Where the whole sequence lies in
this block, it multiplies the rows' factors by d loss / d logprob. All in float64, but for the settings, which Triton
takes as float32: a sum of 100,000 log-probs keeps its digits, and the rate of float64 does not matter for (S,) numbers.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.blocks import SequenceBlock
from fastflow_kernels.sequence_terms import SequenceInputs, SequenceTerms

BLOCK_TOKENS = 1024


@triton.jit(
    do_not_specialize=["row_start", "row_stop", "sequence_start"],
    do_not_specialize_on_alignment=["token_logprob", "row_factor"],  # a block may start at an odd row
)
def sequence_kernel(
    token_logprob,  # (R,) float32, of this block's rows
    row_factor,  # (R,) float32, multiplied in place
    cu_seqlens,  # (S+1,) int64
    log_z,  # (S,) float64, as the next three
    log_target,
    length_scale,
    behaviour_logprob,
    logprob,  # (S,) float64, as the next six; read and written
    residual,
    importance,
    raw_ratio,
    loss,
    d_logprob,
    d_log_z,
    row_start,
    row_stop,
    sequence_start,
    low,
    high,
    normaliser,
    TOKEN_MEAN: tl.constexpr,
    CLOSES: tl.constexpr,
    SCALES_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    sequence = sequence_start + tl.program_id(0)
    first = tl.load(cu_seqlens + sequence)
    last = tl.load(cu_seqlens + sequence + 1)
    begin = tl.maximum(first, row_start) - row_start
    end = tl.minimum(last, row_stop) - row_start

    partial = tl.zeros((BLOCK_TOKENS,), tl.float64)
    for start in range(begin, end, BLOCK_TOKENS):
        rows = start + tl.arange(0, BLOCK_TOKENS)
        partial += tl.load(token_logprob + rows, mask=rows < end, other=0.0).to(tl.float64)
    total = tl.load(logprob + sequence) + tl.sum(partial, 0)
    tl.store(logprob + sequence, total)

    if CLOSES:
        is_empty = first == last
        scale = tl.where(is_empty, 0.0, tl.load(length_scale + sequence))
        log_ratio = tl.where(is_empty, 0.0, total - tl.load(behaviour_logprob + sequence))
        own_log_z = tl.load(log_z + sequence)
        distance = tl.where(is_empty, 0.0, own_log_z + scale * total - tl.load(log_target + sequence))
        if TOKEN_MEAN:
            log_ratio = log_ratio / tl.maximum(last - first, 1).to(tl.float64)
        ratio = tl.exp(log_ratio)
        clipped = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))  # nan stays nan
        slope = 2.0 * clipped * distance / normaliser
        tl.store(residual + sequence, distance)
        tl.store(raw_ratio + sequence, ratio)
        tl.store(importance + sequence, clipped)
        tl.store(loss + sequence, clipped * distance * distance / normaliser)
        tl.store(d_log_z + sequence, slope)
        tl.store(d_logprob + sequence, slope * scale)
        if SCALES_ROWS:
            coefficient = (slope * scale).to(tl.float32)
            for start in range(begin, end, BLOCK_TOKENS):
                rows = start + tl.arange(0, BLOCK_TOKENS)
                factor = tl.load(row_factor + rows, mask=rows < end, other=0.0)
                tl.store(row_factor + rows, factor * coefficient, mask=rows < end)


def settle_sequences_(
    terms: SequenceTerms,
    inputs: SequenceInputs,
    offsets: Tensor,
    block: SequenceBlock,
    token_logprob: Tensor,
    row_factor: Tensor,
) -> None:
    """Add a block's log-probs (R,) to `terms`, complete its finished sequences, scale `row_factor` (R,)."""
    sequence_count = block.sequence_stop - block.sequence_start
    if not sequence_count:
        return
    sequence_kernel[(sequence_count,)](
        token_logprob,
        row_factor,
        offsets,
        inputs.log_z,
        inputs.log_target,
        inputs.length_scale,
        inputs.behaviour_logprob,
        terms.logprob,
        terms.residual,
        terms.importance,
        terms.raw_ratio,
        terms.loss,
        terms.d_logprob,
        terms.d_log_z,
        block.row_start,
        block.row_stop,
        block.sequence_start,
        1.0 - inputs.clip_low,
        1.0 + inputs.clip_high,
        inputs.normaliser,
        TOKEN_MEAN=inputs.ratio == "token_mean",
        CLOSES=block.closes,
        SCALES_ROWS=not block.is_part,
        BLOCK_TOKENS=BLOCK_TOKENS,
    )
