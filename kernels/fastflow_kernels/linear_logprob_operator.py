"""Registers `linear_logprob` as the operator torch.ops.fastflow.linear_logprob, and its backward as another."""

import inspect
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from fastflow_kernels import logprob_blocks
from fastflow_kernels.autograd import refuse_create_graph
from fastflow_kernels.head import Head
from fastflow_kernels.implementation import choose, running_on
from fastflow_kernels.matmul import accumulator_dtype
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.shard import VocabularyShard
from fastflow_kernels.tilt import Tilt
from fastflow_kernels.validate import check_target_range


def run(
    hidden: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 - the schema of an operator is read from these annotations
    targets: Tensor,
    factors: Tensor,
    temperature: Tensor,
    softcap: Optional[float],  # noqa: UP045
    block_rows: Optional[int],  # noqa: UP045
    block_bytes: Optional[int],  # noqa: UP045
    shard_start: int,
    shard_group: Optional[str],  # noqa: UP045
    shard_largest: Optional[int],  # noqa: UP045
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs (N,), then TokenStatistics, whose parts are empty where they are not asked for.

    Arguments as in `linear_logprob`, but: temperature (1,) float64 on the CPU; factors, shard_start, shard_group and
    shard_largest as in flow_loss_operator.run.
    factors come from outside, so that a weight of another type is converted once for both passes. The copy stands until
    the backward pass. Both passes hold it anyway, and the head comes last in the one and first in the other: a call
    takes no more memory at its peak.
    """
    shard = VocabularyShard.named(shard_start, shard_group, shard_largest)
    check_target_range(targets, factors.shape[0], shard)
    head = Head.of(factors, bias, temperature=temperature.item(), softcap=softcap, shard=shard)
    with running_on(hidden.device):
        rows = hidden.to(factors.dtype).contiguous()
        choice = choose(hidden.device, factors.dtype, head, statistics=statistics)
        found = TokenStatistics.empty(hidden.shape[0] if statistics else 0, rows, accumulator_dtype(factors.dtype))
        logprob = logprob_blocks.logprobs(
            rows, targets.long().contiguous(), head, choice, block_rows, block_bytes, found if statistics else None
        )
        return logprob, *found


def run_backward(
    upstream: Optional[Tensor],  # noqa: UP045
    upstream_entropy: Optional[Tensor],  # noqa: UP045
    upstream_logsumexp: Optional[Tensor],  # noqa: UP045
    logprob: Optional[Tensor],  # noqa: UP045
    entropy: Optional[Tensor],  # noqa: UP045
    logsumexp: Optional[Tensor],  # noqa: UP045
    hidden: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045
    targets: Tensor,
    factors: Tensor,
    temperature: Tensor,
    softcap: Optional[float],  # noqa: UP045
    block_rows: Optional[int],  # noqa: UP045
    block_bytes: Optional[int],  # noqa: UP045
    shard_start: int,
    shard_group: Optional[str],  # noqa: UP045
    shard_largest: Optional[int],  # noqa: UP045
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of hidden, weight and bias, in their types; empty where not needed.

    upstream, upstream_entropy, upstream_logsumexp: gradients (N,) of those outputs of `run`, None for 0. logprob,
    entropy and logsumexp: those outputs, wanted only where one of the latter two is given. needs: which of hidden,
    weight and bias need one.
    """
    need_hidden, need_weight, need_bias = needs
    shard = VocabularyShard.named(shard_start, shard_group, shard_largest)
    head = Head.of(factors, bias, temperature=temperature.item(), softcap=softcap, shard=shard)
    given: Tensor | Tilt
    if upstream_entropy is not None or upstream_logsumexp is not None:
        assert logprob is not None and entropy is not None and logsumexp is not None, (
            "the forward pass leaves all three"
        )
        given = Tilt.of(
            logprob,
            entropy,
            logsumexp,
            upstream_logprob=upstream,
            upstream_entropy=upstream_entropy,
            upstream_logsumexp=upstream_logsumexp,
        )
    elif upstream is None:
        given = hidden.new_zeros(hidden.shape[0], dtype=accumulator_dtype(factors.dtype))
    else:
        given = upstream
    with running_on(hidden.device):
        d_hidden, d_weight, d_bias = logprob_blocks.gradients(
            given,
            hidden.to(factors.dtype).contiguous(),
            targets.long().contiguous(),
            head,
            choose(hidden.device, factors.dtype, head),
            block_rows,
            block_bytes,
            need_hidden=need_hidden,
            weight=weight if need_weight else None,
            bias=bias if need_bias else None,
        )

    def typed(gradient: Tensor | None, own: Tensor | None) -> Tensor:
        return hidden.new_empty(0) if gradient is None or own is None else gradient.to(own.dtype)

    return typed(d_hidden, hidden), typed(d_weight, weight), typed(d_bias, bias)


operator = torch.library.custom_op("fastflow::linear_logprob", run, mutates_args=())
backward_operator = torch.library.custom_op("fastflow::linear_logprob_backward", run_backward, mutates_args=())


@operator.register_fake
def _fake(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    call = inspect.signature(run).bind(*arguments, **named).arguments
    hidden, dtype = call["hidden"], accumulator_dtype(call["factors"].dtype)
    row_count = hidden.shape[0]
    return hidden.new_empty(row_count, dtype=dtype), *TokenStatistics.empty(
        row_count if call["statistics"] else 0, hidden, dtype
    )


@backward_operator.register_fake
def _fake_backward(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    call = inspect.signature(run_backward).bind(*arguments, **named).arguments
    empty = call["hidden"].new_empty(0)
    return tuple(
        torch.empty_like(call[name], memory_format=torch.contiguous_format) if is_needed else empty.clone()
        for name, is_needed in zip(("hidden", "weight", "bias"), call["needs"], strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logprob, entropy, logsumexp, mean_logit = output
    ctx.settings, statistics = inputs[6:-1], inputs[-1]
    ctx.input_count = len(inputs)
    ctx.save_for_backward(*inputs[:6], *((logprob, entropy, logsumexp) if statistics else (None,) * 3))
    ctx.mark_non_differentiable(*((mean_logit,) if statistics else output[1:]))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_create_graph("linear_logprob")
    needs, (*head, logprob, entropy, logsumexp) = ctx.needs_input_grad[:3], ctx.saved_tensors
    gradients = backward_operator(*upstream[:3], logprob, entropy, logsumexp, *head, *ctx.settings, needs)
    handed = (gradient if is_needed else None for gradient, is_needed in zip(gradients, needs, strict=True))
    return (*handed, *(None,) * (ctx.input_count - len(needs)))


operator.register_autograd(_backward, setup_context=_setup_context)
