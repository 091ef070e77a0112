"""What the backward passes of the two operators share."""

import contextlib

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, autocast would round what the ops accumulate; they choose their types themselves."""
    return torch.autocast(device.type, enabled=False)


def refuse_create_graph(op: str) -> None:
    """To be called first in a backward, which runs with gradients enabled only under create_graph=True."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op} has no second derivative here, but its backward ran with create_graph=True; call backward "
            f"without create_graph, or use fastflow_kernels.reference.{op}, which has them all."
        )


def refuse_second_backward(ctx: FunctionCtx) -> None:
    """flow_loss scales its gradients in place when it hands them out, so that can happen once."""
    if getattr(ctx, "handed_out", False):
        raise RuntimeError(
            "flow_loss computes its gradient once, in the forward pass, and the first backward has "
            "handed it out; call flow_loss again before a second backward."
        )
    ctx.handed_out = True


@torch.library.custom_op("fastflow::scale_", mutates_args={"gradient"})
def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """gradient *= upstream (), without a sweep over memory where that is one and asking costs no wait."""
    if upstream.device.type != "cpu" or upstream.item() != 1.0:
        gradient.mul_(upstream)


def handed_out(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """upstream () times gradient, in the type of its input: the only rounding it meets after accumulation."""
    if gradient.dtype == dtype:
        scale_(gradient, upstream)
        return gradient
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))
