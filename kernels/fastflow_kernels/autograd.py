"""Has what the backward passes of the two operators share."""

from typing import Any

import torch
from torch import Tensor

from fastflow_kernels.implementation import has_triton_kernels_for, running_on


def refuse_create_graph(op: str) -> None:
    """Stand first in a backward, which runs with gradients enabled only under create_graph=True."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op} has no second derivative here, but its backward ran with create_graph=True; call backward "
            f"without create_graph, or use fastflow_kernels.reference.{op}, which has them all."
        )


def refuse_second_backward(ctx: Any) -> None:
    """Let flow_loss hand its gradients out once: it scales them in place."""
    if getattr(ctx, "handed_out", False):
        raise RuntimeError(
            "flow_loss computes its gradient once, in the forward pass, and the first backward has "
            "handed it out; call flow_loss again before a second backward."
        )
    ctx.handed_out = True


def handed_out(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return upstream () times gradient, in the type of its input.

    A float32 sum is rounded here and nowhere else. The gradient of a bfloat16 head comes rounded already, so that it
    needed half the memory meanwhile: an upstream gradient other than a power of two rounds it a second time.

    Works in place where the type stays, since the gradient of a head is large; a graph being traced has no places. An
    upstream gradient of one costs nothing there: on a CPU the host knows it, and on CUDA the kernel finds out.
    """
    if type(gradient) is not Tensor or torch.compiler.is_compiling():
        return (gradient * upstream).to(dtype)
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    if has_triton_kernels_for(gradient):
        from fastflow_kernels.triton.upstream import take_upstream

        with running_on(gradient.device):
            return take_upstream(gradient, upstream, out)
    if out is gradient and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient
    return torch.mul(gradient, upstream, out=out)
