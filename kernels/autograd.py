"""What the two autograd functions share."""

import contextlib

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast would silently round float32 factors to half precision; the ops choose their types."""
    return torch.autocast(device.type, enabled=False)


def refuse_create_graph(op: str) -> None:
    """To be called first in a backward, which runs with gradients enabled only under create_graph=True."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op} has no second derivative here, but its backward ran with create_graph=True; call backward "
            f"without create_graph, or use fastflow_kernels.reference.{op}, which has them all."
        )


def finished(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A gradient in the type of its input: the only rounding it meets after accumulation."""
    return None if gradient is None else gradient.to(dtype)
