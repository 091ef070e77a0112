"""Registers `flow_loss` with a sum of the caller's for the head's gradient, in two operators of torch.

An operator that changes an argument can have no gradient of its own. So the first, on detached tensors, computes all
and adds the weight's gradient to the sum; the second attaches the other gradients to the loss.
"""

import math
from typing import Any, Optional

import torch
from torch import Tensor

from fastflow_kernels.autograd import handed_out, refuse_create_graph, refuse_second_backward
from fastflow_kernels.flow_loss_operator import DIFFERENTIABLE, GRADIENTS, SCHEMA, fake, run

operator = torch.library.custom_op(
    "fastflow::flow_loss_accumulating",
    run,
    mutates_args=("weight_sum",),
    schema=SCHEMA.replace(") -> ", ", Tensor(a0!) weight_sum) -> "),
)
operator.register_fake(fake)


def add_and_attach(weight_sum: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """Run it and return the outputs ahead of the gradients, the loss differentiable in all but the weight.

    arguments: those of flow_loss_operator.run. Raises RuntimeError in a forward pass that non-reentrant checkpointing
    takes again during backward, since the first one has added the gradient already.
    """
    _refuse_a_second_forward()
    detached = {name: None if arguments[name] is None else arguments[name].detach() for name in DIFFERENTIABLE}
    need_hidden, _, *others = arguments["needs"]
    outputs = operator(**{**arguments, **detached, "needs": [need_hidden, False, *others]}, weight_sum=weight_sum)
    d_hidden, _, d_bias, d_log_z = outputs[GRADIENTS:]
    loss = attach_operator(
        outputs[0], arguments["hidden"], arguments["bias"], arguments["log_z"], d_hidden, d_bias, d_log_z
    )
    return loss, *outputs[1:GRADIENTS]


def _refuse_a_second_forward() -> None:
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        raise RuntimeError(
            "flow_loss with accumulate_into ran inside torch.utils.checkpoint(use_reentrant=False), which computes it "
            "twice, and the head's gradient would be added twice; leave this call out of the checkpoint (it keeps no "
            "logits), or pass use_reentrant=True."
        )


def attach(
    loss: Tensor,
    hidden: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 - the schema of an operator is read from these annotations
    log_z: Tensor,
    d_hidden: Tensor,
    d_bias: Tensor,
    d_log_z: Tensor,
) -> Tensor:
    """Return loss (), whose gradients are those given; empty where an input needs none. Backward uses them up."""
    return loss.clone()


attach_operator = torch.library.custom_op("fastflow::attach_gradients", attach, mutates_args=())


@attach_operator.register_fake
def _fake_attach(loss: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty_like(loss)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, *parameters, d_hidden, d_bias, d_log_z = inputs
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in parameters]
    ctx.save_for_backward(d_hidden, d_bias, d_log_z)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_create_graph("flow_loss")
    refuse_second_backward(ctx)
    if grad_loss is None:
        return (None,) * 7
    grad_loss = _one(grad_loss)
    gradients = (
        handed_out(gradient, grad_loss, dtype) if is_needed else None
        for is_needed, gradient, dtype in zip(ctx.needs_input_grad[1:4], ctx.saved_tensors, ctx.dtypes, strict=True)
    )
    return None, *gradients, None, None, None


attach_operator.register_autograd(_backward, setup_context=_setup_context)


def _one(upstream: Tensor) -> Tensor:
    """Refuse an upstream gradient () other than one, for which the sum is wrong; nan where it is not known here."""
    if type(upstream) is not Tensor or upstream.device.type != "cpu":
        return upstream.masked_fill(upstream != 1.0, math.nan)
    if upstream.item() != 1.0:
        raise RuntimeError(
            "flow_loss has added the head's gradient to accumulate_into for an upstream gradient of one, but backward "
            f"came with {upstream.item():g}; divide by `normaliser` in place of scaling the loss, and set the sum back "
            "to what it was before this call."
        )
    return upstream
