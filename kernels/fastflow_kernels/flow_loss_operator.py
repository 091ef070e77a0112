"""Registers `flow_loss` as the operator torch.ops.fastflow.flow_loss: real, fake and backward implementation.

The gradients of the loss are outputs of the operator. It computes them along with the loss, for the inputs that need
them, and saves them for the backward pass, which only scales them. So a compiled graph sees one node and plain tensors.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from fastflow_kernels.autograd import handed_out, refuse_create_graph, refuse_second_backward
from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.flow_loss_blocks import FlowLossOverBlocks, NeededGradients
from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import finished_dtype
from fastflow_kernels.implementation import choose, is_being_captured, running_on
from fastflow_kernels.matmul import accumulator_dtype
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.sequence_terms import SequenceInputs
from fastflow_kernels.shard import VocabularyShard
from fastflow_kernels.validate import check_boundaries, check_captured_offsets, check_target_range

RESULTS = 6  # those of FlowLoss
GRADIENTS = RESULTS + len(TokenStatistics._fields)  # where they begin: behind the statistics
DIFFERENTIABLE = ("hidden", "weight", "bias", "log_z")


def run(
    hidden: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 - the schema of an operator is read from these annotations
    log_z: Tensor,
    targets: Tensor,
    factors: Tensor,
    cu_seqlens: Tensor,
    device_cu_seqlens: Optional[Tensor],  # noqa: UP045
    log_target: Tensor,
    length_scale: Tensor,
    behaviour_logprob: Tensor,
    numbers: Tensor,
    ratio: str,
    softcap: Optional[float],  # noqa: UP045
    block_rows: Optional[int],  # noqa: UP045
    block_bytes: Optional[int],  # noqa: UP045
    shard_start: int,
    shard_group: Optional[str],  # noqa: UP045
    shard_largest: Optional[int],  # noqa: UP045
    statistics: bool,
    needs: Sequence[bool],
    weight_sum: Optional[Tensor] = None,  # noqa: UP045
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the six results of FlowLoss, then TokenStatistics, then the gradients of hidden, weight, bias and log_z.

    What is not asked for or not needed is empty. The backward pass hands the gradients out, scaled in place: they are
    no longer valid after it.

    Arguments as in `flow_loss`, but: factors, the rows of the weight as they are multiplied, without padding
    (head.py); numbers (4,) float64 on the CPU: clip_low, clip_high, normaliser, temperature; shard_start, shard_group
    and shard_largest, a VocabularyShard's start, the name of its group, or None, and its largest. needs: which of
    DIFFERENTIABLE need a gradient. weight_sum: what the gradient of the weight is added to in this call, whether or not
    it is to be returned.

    They are few where they can be: torch looks each of them up in a list that it makes anew, of all of them.
    """
    if is_being_captured(hidden.device):
        check_captured_offsets(cu_seqlens, device_cu_seqlens)
    boundaries = check_boundaries(cu_seqlens, row_count=hidden.shape[0])
    shard = VocabularyShard.named(shard_start, shard_group, shard_largest)
    check_target_range(targets, factors.shape[0], shard)
    clip_low, clip_high, normaliser, temperature = numbers.tolist()
    need_hidden, need_weight, need_bias, need_log_z = needs
    head = Head.of(factors, bias, temperature=temperature, softcap=softcap, shard=shard)
    with running_on(hidden.device):
        offsets = _copied_to(hidden.device, cu_seqlens) if device_cu_seqlens is None else device_cu_seqlens
        flow = FlowLossOverBlocks(
            hidden.to(factors.dtype).contiguous(),
            targets.long().contiguous(),
            offsets.long().contiguous(),
            head,
            weight=weight,
            bias=bias,
            sequences=SequenceInputs(
                log_z=log_z.double().contiguous(),
                log_target=log_target.double().contiguous(),
                length_scale=length_scale.double().contiguous(),
                behaviour_logprob=behaviour_logprob.double().contiguous(),
                clip_low=clip_low,
                clip_high=clip_high,
                ratio=ratio,
                normaliser=normaliser,
            ),
            choice=choose(hidden.device, factors.dtype, head, statistics=statistics),
            need=NeededGradients(
                need_hidden, need_weight or weight_sum is not None, need_bias and bias is not None, need_log_z
            ),
            with_statistics=statistics,
            weight_sum=weight_sum,
        )
        gradients = flow.run(
            sequence_blocks(boundaries, block_rows or flow.default_block_rows(boundaries, block_bytes))
        )
    terms, dtype = flow.terms, flow.dtype
    sums = (terms.loss.sum(), terms.logprob, terms.residual, terms.importance, terms.raw_ratio)
    outputs: Any = (  # as many as the annotation counts
        *(values.to(dtype) for values in sums),
        flow.token_logprob,
        *(flow.token_statistics or TokenStatistics.empty(0, hidden, dtype)),
        *(hidden.new_empty(0) if gradient is None else gradient for gradient in gradients),
    )
    return outputs


def _copied_to(device: torch.device, values: Tensor) -> Tensor:
    """Copy values to this device; from the host to a CUDA device through pinned memory of its own.

    A copy from other memory would hold the host until the device has come to it. The caller's own pinned memory may
    hold other values by then.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = torch.empty_like(values, pin_memory=True).copy_(values)
    return values.to(device, non_blocking=True)


SCHEMA = torch.library.infer_schema(run, mutates_args=()).replace(", Tensor? weight_sum=None", "")
operator = torch.library.custom_op("fastflow::flow_loss", run, mutates_args=(), schema=SCHEMA)


@operator.register_fake
def fake(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    call = inspect.signature(run).bind(*arguments, **named).arguments
    hidden, weight, bias, log_z = (call[name] for name in DIFFERENTIABLE)
    dtype = accumulator_dtype(call["factors"].dtype)
    results = [hidden.new_empty((), dtype=dtype), *(log_z.new_empty(log_z.shape, dtype=dtype) for _ in range(4))]
    token_logprob = hidden.new_empty(hidden.shape[0], dtype=dtype)
    need_hidden, need_weight, need_bias, need_log_z = call["needs"]
    gradients = (
        hidden.new_empty(hidden.shape, dtype=dtype) if need_hidden else None,
        _empty_gradient(weight, dtype) if need_weight else None,
        _empty_gradient(bias, dtype) if need_bias and bias is not None else None,
        log_z.new_empty(log_z.shape, dtype=torch.float64) if need_log_z else None,
    )
    statistics = TokenStatistics.empty(hidden.shape[0] if call["statistics"] else 0, hidden, dtype)
    return (
        *results,
        token_logprob,
        *statistics,
        *(hidden.new_empty(0) if part is None else part for part in gradients),
    )


def _empty_gradient(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.new_empty(parameter.shape, dtype=finished_dtype(parameter.dtype, dtype))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, log_z = inputs[:4]
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias, log_z)]
    ctx.computed = inputs[-1]
    ctx.input_count = len(inputs)
    ctx.save_for_backward(*output[GRADIENTS:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    refuse_create_graph("flow_loss")
    refuse_second_backward(ctx)
    if grad_loss is None:
        return (None,) * ctx.input_count
    gradients: list[Tensor | None] = []
    candidates = zip(DIFFERENTIABLE, ctx.needs_input_grad, ctx.computed, ctx.saved_tensors, ctx.dtypes, strict=False)
    for name, is_needed, is_computed, gradient, dtype in candidates:
        if is_needed and not is_computed:
            raise RuntimeError(f"The gradient of {name} was not computed; call the operator with `needs` that say so.")
        gradients.append(handed_out(gradient, grad_loss, dtype) if is_needed else None)
    return (*gradients, *(None,) * (ctx.input_count - len(gradients)))


operator.register_autograd(_backward, setup_context=_setup_context)
