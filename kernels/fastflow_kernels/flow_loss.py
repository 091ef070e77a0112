"""The sequence-level trajectory-balance loss and its gradient in one pass over the vocabulary.

For a sequence s, with log pi summed over its rows,

    residual_s   = log_z_s + length_scale_s * logprob_s - log_target_s
    importance_s = clip(exp(logprob_s - behaviour_logprob_s), 1 - clip_low, 1 + clip_high), held constant
    loss         = sum_s importance_s * residual_s^2 / normaliser

and the gradient of the loss with respect to the log-prob of every row of s is the one number

    c_s = 2 * importance_s * residual_s * length_scale_s / normaliser

Everything in c_s but logprob_s is known before the head runs. So, one block of rows at a time (blocks.py):

    1. project the rows to logits (matmul.py has their type); take from them the log-probs and the direction of
       their gradient (row_statistics.py), which takes their place                                  2 n D V flops
    2. settle the sequences: they are whole, so c_s is known now, one factor per row (sequence_terms.py)
    3. d_hidden = direction @ weight, its rows scaled; d_weight += direction^T @ (scaled hidden)    4 n D V flops

How step 1 is done depends on device and type: implementation.py chooses, projector.py says what all ways share.

Nothing is recomputed: 6 N D V in all, which is the least possible. An op that learns its upstream gradient only in the
backward pass pays 8. A sequence longer than a block has no c_s until its last block. Its rows enter with coefficient
one, d_weight in a second buffer, and both are scaled once at its end. Calls without such a sequence have no second
buffer.

d_weight and d_hidden accumulate in float32 (float64 for float64 inputs) over the blocks, and are rounded to the type
of their inputs at the end. The gradient of a bfloat16 head is rounded before it waits for the upstream gradient of the
loss, since it then waits in half the memory; the others are rounded after. Sums over a sequence and all (S,) arithmetic
are in float64. Nothing waits for a CUDA device, as long as cu_seqlens is on the host.
"""

from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastflow_kernels import accumulating_operator, flow_loss_operator
from fastflow_kernels.reference import FlowLoss, TokenStatistics
from fastflow_kernels.sequence_terms import RATIOS
from fastflow_kernels.shard import VocabularyShard
from fastflow_kernels.validate import (
    check_accumulate_into,
    check_clip,
    check_cu_seqlens,
    check_name,
    check_positive,
    check_sequence_tensors,
    checked_head_arguments,
    host_numbers,
)


@overload
def flow_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    cu_seqlens: Int[Tensor, " offsets"],
    *,
    device_cu_seqlens: Int[Tensor, " offsets"] | None = ...,
    log_z: Float[Tensor, " S"],
    log_target: Float[Tensor, " S"],
    length_scale: Float[Tensor, " S"],
    behaviour_logprob: Float[Tensor, " S"],
    clip_low: float,
    clip_high: float,
    ratio: str = ...,
    normaliser: float,
    bias: Float[Tensor, " V"] | None = ...,
    temperature: float = ...,
    softcap: float | None = ...,
    vocabulary: int | None = ...,
    shard: VocabularyShard | None = ...,
    block_rows: int | None = ...,
    block_bytes: int | None = ...,
    accumulate_into: Float[Tensor, "V D"] | None = ...,
    statistics: Literal[False] = ...,
) -> FlowLoss: ...


@overload
def flow_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    cu_seqlens: Int[Tensor, " offsets"],
    *,
    device_cu_seqlens: Int[Tensor, " offsets"] | None = ...,
    log_z: Float[Tensor, " S"],
    log_target: Float[Tensor, " S"],
    length_scale: Float[Tensor, " S"],
    behaviour_logprob: Float[Tensor, " S"],
    clip_low: float,
    clip_high: float,
    ratio: str = ...,
    normaliser: float,
    bias: Float[Tensor, " V"] | None = ...,
    temperature: float = ...,
    softcap: float | None = ...,
    vocabulary: int | None = ...,
    shard: VocabularyShard | None = ...,
    block_rows: int | None = ...,
    block_bytes: int | None = ...,
    accumulate_into: Float[Tensor, "V D"] | None = ...,
    statistics: Literal[True],
) -> tuple[FlowLoss, TokenStatistics]: ...


def flow_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],  # int64 or int32, in [0, V)
    cu_seqlens: Int[Tensor, " offsets"],  # S + 1 of int32 or int64
    *,
    device_cu_seqlens: Int[Tensor, " offsets"] | None = None,  # S + 1 of int32 or int64
    log_z: Float[Tensor, " S"],
    log_target: Float[Tensor, " S"],
    length_scale: Float[Tensor, " S"],
    behaviour_logprob: Float[Tensor, " S"],
    clip_low: float,
    clip_high: float,
    ratio: str = "sequence",
    normaliser: float,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocabulary: int | None = None,
    shard: VocabularyShard | None = None,
    block_rows: int | None = None,
    block_bytes: int | None = None,
    accumulate_into: Float[Tensor, "V D"] | None = None,
    statistics: bool = False,
) -> FlowLoss | tuple[FlowLoss, TokenStatistics]:
    """Compute the weighted squared trajectory-balance residuals of packed sequences (PowerFlow, arXiv 2603.18363).

    Args:
        hidden: final hidden states, one row per response token, sequences one after another, no padding.
        weight: weight of the head. One that is not contiguous is copied for the call. Its type may differ from that
            of hidden, float64 apart: they are multiplied in the narrower, or in autocast's.
        cu_seqlens: row offsets; sequence s has the rows cu_seqlens[s] to cu_seqlens[s+1]. Read on the host:
            keep it on the CPU to spare a CUDA device the wait. A sequence may be empty: it adds nothing to
            the loss or any gradient, whatever its other inputs hold, and reports logprob 0, residual 0, ratio
            1.
        device_cu_seqlens: the same offsets on the device of hidden, which spares their copy; needed where a CUDA graph
            captures the call. Nothing compares the two. A replay keeps the blocks that cu_seqlens was cut into: other
            lengths need another capture.
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
        temperature: divides the logits; above 0.
        softcap: bounds the logits ahead of the temperature, x -> softcap tanh(x / softcap); above 0, or None. In
            Triton's kernels a logit is off by a few float32 roundings of the softcap: 3e-6 for 30, 6e-5 for 1,000.
        vocabulary: true size of the vocabulary, where the weight is padded beyond it: the rows from there on
            take no part and get gradient 0. None: all rows.
        shard: where each rank of a group holds a part of the weight's rows; see VocabularyShard.
        block_rows: rows whose logits exist at a time; changes memory and speed, not the answer.
        block_bytes: memory of these logits, where block_rows is None. None: on CUDA 1 GiB, or the size of a float32
            gradient of the head where that is more; larger blocks are taken where they need less memory in all.
        accumulate_into: float32 (float64 for float64 inputs), (V, D), contiguous: weight.grad, or a main_grad beside
            it. The gradient of the weight is added to it in this call, not in the backward pass, and autograd gets
            none. This spares a tensor of this size, and a pass over it. The upstream gradient of the loss must be one:
            scale by the normaliser instead. Nothing is added under torch.no_grad(). Where nothing but the weight
            requires grad, the loss requires none, and there is no backward to call. With a head cut by FSDP, pass a
            tensor for the whole weight and reduce it yourself. Leave the call out of
            torch.utils.checkpoint(use_reentrant=False), which would compute it twice.
        statistics: also returns each row's entropy, logsumexp and mean logit, from the same pass over the
            vocabulary. With shards those of the whole vocabulary, on every rank.

    Returns:
        FlowLoss. Gradient flows from `loss` to hidden, weight, bias and log_z; it was computed in this call,
        only for the inputs that need it, and one backward hands it out; with `accumulate_into` not to weight.
        With `statistics`, a pair of this and TokenStatistics, which carries no gradient here.

    Raises:
        TypeError, ValueError: an input has the wrong type, shape, device or range.
        RuntimeError: a second backward goes through the same loss (torch.compile allows it); backward runs with
            create_graph=True; an input has a tangent of forward-mode differentiation; a CUDA graph captures the
            call without offsets on both host and device; with `accumulate_into`, non-reentrant checkpointing runs
            the call again, or the upstream gradient is not one (on CUDA and in a compiled graph, where the host
            does not know it, the other gradients are nan then).

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
    head = checked_head_arguments(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        vocabulary=vocabulary,
        shard=shard,
        block_rows=block_rows,
        block_bytes=block_bytes,
    )
    check_cu_seqlens(cu_seqlens, device_cu_seqlens, like=hidden)
    constants = {
        "log_target": log_target,
        "length_scale": length_scale,
        "behaviour_logprob": behaviour_logprob,
    }
    check_sequence_tensors(cu_seqlens.shape[0] - 1, like=hidden, log_z=log_z, **constants)
    check_clip(clip_low, clip_high)
    check_name("ratio", ratio, RATIOS)
    check_positive("normaliser", normaliser)

    inputs = (hidden, weight, bias, log_z)
    arguments = {
        **head,
        **constants,
        "needs": [tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in inputs],
        "statistics": statistics,
        "log_z": log_z,
        "cu_seqlens": cu_seqlens,
        "device_cu_seqlens": device_cu_seqlens,
        "numbers": host_numbers(clip_low, clip_high, normaliser, temperature),
        "ratio": ratio,
    }
    if accumulate_into is not None:
        check_accumulate_into(accumulate_into, weight, head["factors"].dtype)
    if accumulate_into is not None and torch.is_grad_enabled():
        outputs = accumulating_operator.add_and_attach(accumulate_into, arguments)
    else:
        outputs = flow_loss_operator.operator(**arguments)
    result = FlowLoss(*outputs[: flow_loss_operator.RESULTS])
    found = TokenStatistics(*outputs[flow_loss_operator.RESULTS : flow_loss_operator.GRADIENTS])
    return (result, found) if statistics else result
