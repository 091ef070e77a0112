"""The pass of `flow_loss` over its blocks, free of autograd; flow_loss.py explains the algorithm."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.blocks import SequenceBlock
from fastflow_kernels.head_gradient import HeadGradient
from fastflow_kernels.matmul import accumulator_dtype, as_factor, back_project, project
from fastflow_kernels.row_pass import row_pass_
from fastflow_kernels.sequence_terms import SequenceInputs, sum_by_sequence


class FlowLoss(NamedTuple):
    """What `flow_loss` returns; float64 for float64 inputs, else float32. Only `loss` carries gradient."""

    loss: Tensor  # () the sum over sequences, divided by the normaliser
    logprob: Tensor  # (S,) log pi of the sequence, nats
    residual: Tensor  # (S,)
    weight: Tensor  # (S,) the clipped ratio
    raw_ratio: Tensor  # (S,) the ratio before clipping
    token_logprob: Tensor  # (N,) log pi of each row, nats


class FlowLossGradients(NamedTuple):
    """d loss / d input for an upstream gradient of one, in accumulator type; None where not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    log_z: Tensor | None


class NeededGradients(NamedTuple):
    """Which inputs need a gradient; work is done for those only."""

    hidden: bool
    weight: bool
    bias: bool
    log_z: bool


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    offsets: Tensor,
    sequences: SequenceInputs,
    blocks: list[SequenceBlock],
    need: NeededGradients,
) -> tuple[FlowLoss, FlowLossGradients]:
    """Loss, statistics and gradients; `blocks` cover the rows in order, and the sequences."""
    dtype = accumulator_dtype(hidden.dtype)
    hidden_factor, head_weight = as_factor(hidden), as_factor(weight)
    head_bias = None if bias is None else bias.detach().to(dtype)
    buffer = head_weight.new_empty(
        max((block.row_count for block in blocks), default=0), head_weight.shape[0], dtype=dtype
    )

    def new_head_gradient() -> HeadGradient:
        return HeadGradient(head_weight, need_weight=need.weight, need_bias=need.bias, dtype=dtype)

    head = new_head_gradient()
    long_head = new_head_gradient() if any(block.is_part for block in blocks) else None
    d_hidden = torch.empty_like(hidden_factor, dtype=dtype) if need.hidden else None
    token_logprob = buffer.new_empty(hidden.shape[0])
    logprob = torch.zeros_like(sequences.log_z)  # the (S,) tensors are float64
    loss = logprob.new_zeros(())
    residual, clipped_ratio, raw_ratio, d_log_z = (torch.empty_like(logprob) for _ in range(4))

    for block in blocks:
        rows, own = block.rows, block.sequences
        direction = project(hidden_factor[rows], head_weight, head_bias, out=buffer[: block.row_count])
        token_logprob[rows], row_scale = row_pass_(direction, targets[rows])
        own_offsets = offsets[block.sequence_start : block.sequence_stop + 1] - block.row_start
        logprob[own] += sum_by_sequence(token_logprob[rows], own_offsets.clamp(0, block.row_count))

        if block.closes:
            terms = sequences.terms(logprob[own], own)
            residual[own], clipped_ratio[own], raw_ratio[own] = terms.residual, terms.weight, terms.raw_ratio
            d_log_z[own] = terms.d_log_z
            loss += terms.loss.sum()
            d_logprob = terms.d_logprob.to(dtype)  # of a sequence; the same for each of its rows
        if not block.is_part:
            row_scale *= d_logprob.repeat_interleave(sequences.row_count[own], output_size=block.row_count)

        if d_hidden is not None:
            back_project(direction, head_weight, out=d_hidden[rows]).mul_(row_scale.unsqueeze(1))
        if head.is_needed():
            (long_head if block.is_part else head).add_rows(direction, row_scale, hidden_factor[rows])

        if block.is_part and block.opens:
            sequence_row_start = block.row_start
        if block.is_part and block.closes:
            if d_hidden is not None:
                d_hidden[sequence_row_start : block.row_stop].mul_(d_logprob)
            if head.is_needed():
                head.take_scaled(long_head, d_logprob)

    d_weight, d_bias = head.finish()
    statistics = (values.to(dtype) for values in (loss, logprob, residual, clipped_ratio, raw_ratio))
    return (
        FlowLoss(*statistics, token_logprob),
        FlowLossGradients(d_hidden, d_weight, d_bias, d_log_z if need.log_z else None),
    )
