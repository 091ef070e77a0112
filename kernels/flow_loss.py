"""The sequence-level trajectory-balance loss and its gradient in one pass over the vocabulary.

For a sequence s, with log pi summed over its rows,

    residual_s = log_z_s + length_scale_s * logprob_s - log_target_s
    weight_s   = clip(exp(logprob_s - behaviour_logprob_s), 1 - clip_low, 1 + clip_high), held constant
    loss       = sum_s weight_s * residual_s^2 / normaliser

and the gradient of the loss with respect to the log-prob of every row of s is the one number

    c_s = 2 * weight_s * residual_s * length_scale_s / normaliser

Everything in c_s but logprob_s is known before the head runs. So, one block of rows at a time (blocks.py):

    1. project the rows to logits, float32                                                      2 n D V flops
    2. log-probs, and the logits turned in place into the direction of their gradient (row_pass.py)
    3. whole sequences only, so c_s is known now: one factor per row
    4. d_hidden = direction @ weight, its rows scaled; d_weight += direction^T @ (scaled hidden) 4 n D V flops

Nothing is recomputed: 6 N D V in all, the least possible, where an op that learns its upstream gradient only
in the backward pass pays 8. A sequence longer than a block has no c_s until its last block. Its rows enter
with coefficient one, d_weight in a second buffer, and both are scaled once at its end; that buffer exists
only in calls with such a sequence.

d_weight and d_hidden accumulate in float32 (float64 for float64 inputs), wait in it for the upstream gradient
of the loss, and are rounded to the type of their inputs once, in the backward pass. Sums over a sequence and
all (S,) arithmetic are in float64.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fastflow_kernels.autograd import finished, refuse_create_graph, without_autocast
from fastflow_kernels.blocks import SequenceBlock, default_block_rows, sequence_blocks
from fastflow_kernels.flow_loss_pass import FlowLoss, NeededGradients, loss_and_gradients
from fastflow_kernels.sequence_terms import RATIOS, SequenceInputs
from fastflow_kernels.validate import (
    check_block_rows,
    check_clip,
    check_cu_seqlens,
    check_head,
    check_name,
    check_positive,
    check_sequence_tensors,
)


def flow_loss(
    hidden: Tensor,  # (N, D) float
    weight: Tensor,  # (V, D) same type
    targets: Tensor,  # (N,) int64 or int32, in [0, V)
    cu_seqlens: Tensor,  # (S+1,) int32 or int64
    *,
    log_z: Tensor,  # (S,) float
    log_target: Tensor,  # (S,) float
    length_scale: Tensor,  # (S,) float
    behaviour_logprob: Tensor,  # (S,) float
    clip_low: float,
    clip_high: float,
    ratio: str = "sequence",
    normaliser: float,
    bias: Tensor | None = None,  # (V,) same type
    block_rows: int | None = None,
) -> FlowLoss:
    """Weighted squared trajectory-balance residuals of packed sequences (PowerFlow, arXiv 2603.18363).

    Args:
        hidden: final hidden states, one row per response token, sequences one after another, no padding.
        weight: weight of the head; need not be contiguous, but then it is copied for the call.
        cu_seqlens: row offsets; sequence s has the rows cu_seqlens[s] to cu_seqlens[s+1]. Read on the host:
            keep it on the CPU to spare a CUDA device the wait. A sequence may be empty: it adds nothing to
            the loss or any gradient, whatever its other inputs hold, and reports logprob 0, residual 0, ratio
            1.
        log_z: log normaliser, in the unit of length_scale * logprob (per token where length_scale is
            1/length).
        log_target: log of the unnormalised target, in the same unit.
        length_scale: factor of the log-prob; 1/length for the length-aware loss, 1 for plain trajectory
            balance.
        behaviour_logprob: log-prob of the sequence under the policy that sampled it, nats.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; 0 <= clip_low <= 1,
            clip_high >= 0 or inf.
        ratio: "sequence", exp(logprob - behaviour_logprob), or "token_mean", its geometric mean over the
            rows.
        normaliser: divides the loss; above 0. The number of sequences of the global batch makes micro-batches
            add up.
        block_rows: rows whose logits exist at a time; changes memory and speed, not the answer.

    Returns:
        FlowLoss. Gradient flows from `loss` to hidden, weight, bias and log_z; it was computed in this call,
        only for the inputs that need it, and one backward hands it out.

    Raises:
        TypeError, ValueError: an input has the wrong type, shape, device or range.
        RuntimeError: on a second backward through the same loss, or with create_graph=True.

    Worked example, two tokens of probability 1/3 each: logprob = -2 log 3 = -2.1972, ratio = exp(0) = 1,
    residual = 0.5 + (1/2)(-2.1972) - 0 = -0.5986, loss = 0.5986^2 = 0.3583, d loss / d log_z = -1.1972.

    >>> result = flow_loss(
    ...     hidden=torch.zeros(2, 4),
    ...     weight=torch.zeros(3, 4),
    ...     targets=torch.tensor([0, 1]),
    ...     cu_seqlens=torch.tensor([0, 2]),
    ...     log_z=torch.tensor([0.5]),
    ...     log_target=torch.zeros(1),
    ...     length_scale=torch.tensor([0.5]),
    ...     behaviour_logprob=torch.tensor([-2.1972]),
    ...     clip_low=0.2,
    ...     clip_high=0.28,
    ...     normaliser=1,
    ... )
    >>> result.loss
    tensor(0.3583)
    """
    check_head(hidden, weight, targets, bias)
    boundaries = check_cu_seqlens(cu_seqlens, row_count=hidden.shape[0])
    constants = {
        "log_target": log_target,
        "length_scale": length_scale,
        "behaviour_logprob": behaviour_logprob,
    }
    check_sequence_tensors(len(boundaries) - 1, like=hidden, log_z=log_z, **constants)
    check_clip(clip_low, clip_high)
    check_name("ratio", ratio, RATIOS)
    check_positive("normaliser", normaliser)
    check_block_rows(block_rows)

    offsets = cu_seqlens.to(hidden.device, torch.int64)
    sequences = SequenceInputs(
        row_count=offsets.diff(),
        log_z=log_z.detach().double(),
        **{name: value.detach().double() for name, value in constants.items()},
        clip_low=float(clip_low),
        clip_high=float(clip_high),
        ratio=ratio,
        normaliser=float(normaliser),
    )
    blocks = sequence_blocks(boundaries, block_rows or default_block_rows(weight.shape[0], hidden.device.type))
    inputs = (hidden, weight, bias, log_z)
    return FlowLoss(*_FlowLoss.apply(*inputs, targets.long(), offsets, sequences, blocks, torch.is_grad_enabled()))


class _FlowLoss(torch.autograd.Function):
    """Carries the gradients that the forward pass computed to the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        log_z: Tensor,
        targets: Tensor,
        offsets: Tensor,
        sequences: SequenceInputs,
        blocks: list[SequenceBlock],
        grad_enabled: bool,  # by the caller: inside forward it is always off, and needs_input_grad ignores it
    ) -> tuple[Tensor, ...]:
        need = NeededGradients(*(needs and grad_enabled for needs in ctx.needs_input_grad[:4]))
        with without_autocast(hidden.device):
            result, ctx.gradients = loss_and_gradients(hidden, weight, bias, targets, offsets, sequences, blocks, need)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype, log_z.dtype)
        ctx.mark_non_differentiable(*result[1:])
        ctx.set_materialize_grads(False)
        return tuple(result)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        refuse_create_graph("flow_loss")
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "flow_loss computes its gradient once, in the forward pass, and the first backward has "
                "handed it out; call flow_loss again before a second backward."
            )
        is_one = grad_loss.device.type == "cpu" and grad_loss.item() == 1.0  # CUDA: asking would wait
        if not is_one:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_loss)
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return (*(finished(gradient, dtype) for gradient, dtype in pairs), None, None, None, None, None)
