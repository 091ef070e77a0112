"""The forward and the backward pass of `linear_logprob` over its blocks, free of autograd."""

import torch
from torch import Tensor

from fastflow_kernels.blocks import row_blocks
from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import HeadGradient
from fastflow_kernels.implementation import Choice
from fastflow_kernels.matmul import accumulator_dtype, back_project


def logprobs(hidden: Tensor, targets: Tensor, head: Head, choice: Choice, block_rows: int | None) -> Tensor:
    """(N,) log-probs; hidden (N, D) in the type of the head."""
    projector_class = choice.projector()
    blocks = row_blocks(hidden.shape[0], block_rows or projector_class.default_forward_rows(head))
    projector = projector_class(head, most_rows=_longest(blocks))
    logprob = hidden.new_empty(hidden.shape[0], dtype=accumulator_dtype(hidden.dtype))
    for rows in blocks:
        logprob[rows] = projector.logprobs(hidden[rows], targets[rows])
    return logprob


def gradients(
    upstream: Tensor,
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    choice: Choice,
    block_rows: int | None,
    *,
    need_hidden: bool,
    d_head: HeadGradient | None,
) -> Tensor | None:
    """d_hidden (N, D) in accumulator type, for upstream (N,); the head's gradient goes into `d_head`."""
    projector_class = choice.projector()
    blocks = row_blocks(hidden.shape[0], block_rows or projector_class.default_rows(head))
    projector = projector_class(head, most_rows=_longest(blocks))
    d_hidden = torch.empty_like(hidden, dtype=accumulator_dtype(hidden.dtype)) if need_hidden else None
    for rows in blocks:
        direction = projector.directions(hidden[rows], targets[rows])
        row_factor = direction.factor * upstream[rows]
        if d_hidden is not None:
            back_project(direction.matrix, head.weight, out=d_hidden[rows]).mul_(row_factor.unsqueeze(1))
        if d_head is not None:
            d_head.add_rows(direction.matrix, row_factor, hidden[rows])
    if d_hidden is not None and head.shard is not None:
        head.shard.sum_(d_hidden)
    return d_hidden


def _longest(blocks: list[slice]) -> int:
    return max((rows.stop - rows.start for rows in blocks), default=0)
