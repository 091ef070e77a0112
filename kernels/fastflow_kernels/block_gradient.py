"""What a block of rows adds to the gradients of the hidden states and of the head."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import HeadGradient
from fastflow_kernels.matmul import back_project_, direction_dtype
from fastflow_kernels.panel import Panel, drained


def spend_directions(
    panels: list[Panel],
    row_factor: Tensor,  # (R,)
    hidden: Tensor,  # (R, D), in the type of the head
    head: Head,
    d_hidden: Tensor | None,  # (R, D), overwritten; None where not needed
    d_head: HeadGradient | None,  # added to; None where not needed
    hidden_is_done: Callable[[Tensor], None] | None = None,  # called with d_hidden, ahead of the head's last product
) -> None:
    """row_factor times the directions, taken back to the hidden states and to the head; frees the panels on the way."""
    scale = row_factor.unsqueeze(1)
    scaled = None
    if d_head is not None:
        scaled = torch.mul(hidden, scale, out=torch.empty_like(hidden, dtype=direction_dtype(hidden.dtype)))
    for panel in drained(panels):
        if d_hidden is not None:
            back_project_(d_hidden, panel.matrix, head.direction_weight[panel.columns], overwrite=panel.start == 0)
            if not panels:
                d_hidden.mul_(scale)
                if hidden_is_done is not None:
                    hidden_is_done(d_hidden)
        if d_head is not None:
            d_head.add_panel(panel, row_factor, scaled)
    if d_head is not None:
        d_head.end_block()
