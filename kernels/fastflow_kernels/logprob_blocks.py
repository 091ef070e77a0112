"""Goes over the blocks of `linear_logprob`, forward and backward, free of autograd."""

import torch
from torch import Tensor

from fastflow_kernels.blocks import row_blocks, told
from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import HeadGradient, spend_directions
from fastflow_kernels.implementation import Choice
from fastflow_kernels.matmul import accumulator_dtype
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.shard import SumsUnderWay
from fastflow_kernels.tilt import Tilt


def logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    choice: Choice,
    block_rows: int | None = None,
    block_bytes: int | None = None,
    statistics: TokenStatistics | None = None,
) -> Tensor:
    """Return log-probs (N,); hidden: (N, D) in the type of the head. Fills statistics (N,), where they are given."""
    projector_class = choice.projector()
    rows_at_once = block_rows or projector_class.default_rows(
        head, row_count=hidden.shape[0], with_gradient=False, block_bytes=block_bytes
    )
    blocks = row_blocks(hidden.shape[0], rows_at_once)
    projector = projector_class(head, most_rows=_longest(blocks))
    logprob = hidden.new_empty(hidden.shape[0], dtype=accumulator_dtype(hidden.dtype))
    for rows in told(blocks):
        own = None if statistics is None else statistics.rows(rows)
        projector.logprobs(hidden[rows], targets[rows], logprob[rows], own)
    return logprob


def gradients(
    upstream: Tensor | Tilt,
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    choice: Choice,
    block_rows: int | None,
    block_bytes: int | None,
    *,
    need_hidden: bool,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden (N, D), in accumulator type, of weight and of bias.

    upstream: gradient (N,) of the log-probs, or a Tilt, which has those of the statistics as well. weight, bias: the
    head's parameters where they need one, else None.
    """
    needs_head = weight is not None or bias is not None
    projector_class = choice.projector()
    rows_at_once = block_rows or projector_class.default_rows(
        head, row_count=hidden.shape[0], with_gradient=True, weight=weight, block_bytes=block_bytes
    )
    blocks = row_blocks(hidden.shape[0], rows_at_once)
    projector = projector_class(head, most_rows=_longest(blocks))
    d_hidden = torch.empty_like(hidden, dtype=accumulator_dtype(hidden.dtype)) if need_hidden else None
    d_head = HeadGradient(head, weight, bias, block_count=len(blocks))
    logprob = hidden.new_empty(hidden.shape[0], dtype=accumulator_dtype(hidden.dtype))  # as in the forward pass
    sums = SumsUnderWay(head.shard)
    for rows in told(blocks):
        if isinstance(upstream, Tilt):
            direction = projector.tilted_directions(hidden[rows], targets[rows], upstream.rows(rows))
            row_factor = direction.factor
        else:
            direction = projector.directions(hidden[rows], targets[rows], logprob[rows])
            row_factor = direction.factor * upstream[rows]
        own_d_hidden = d_hidden[rows] if d_hidden is not None else None
        spend_directions(
            direction.panels,
            row_factor,
            hidden[rows],
            head,
            own_d_hidden,
            d_head if needs_head else None,
            hidden_is_done=sums.start_,
        )
    sums.wait()
    return d_hidden, *d_head.finish()


def _longest(blocks: list[slice]) -> int:
    return max((rows.stop - rows.start for rows in blocks), default=0)
