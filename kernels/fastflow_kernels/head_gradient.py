"""Sums the gradient of the head (weight and bias) over blocks of rows, and takes a block's directions to it."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow_kernels.block_budget import HeadSum
from fastflow_kernels.head import Head
from fastflow_kernels.matmul import accumulate_, accumulator_dtype, back_project_, direction_dtype
from fastflow_kernels.projector import Panel


def finished_dtype(parameter_dtype: torch.dtype, factor_dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a parameter's gradient leaves the ops: bfloat16 for bfloat16, else float32 (float64).

    In float16 it would lose the small entries that a loss scale, the upstream gradient, is there to save.
    """
    return torch.bfloat16 if parameter_dtype == torch.bfloat16 else accumulator_dtype(factor_dtype)


def head_sum(width: int, parameter_dtype: torch.dtype, factor_dtype: torch.dtype, entry_bytes: int) -> HeadSum:
    """Measure the gradient of a head's weight in rows of a block of entry_bytes a row and vocabulary entry."""
    finished, summed = finished_dtype(parameter_dtype, factor_dtype), accumulator_dtype(factor_dtype)
    return HeadSum(
        finished=-(-width * finished.itemsize // entry_bytes),
        summed=-(-width * summed.itemsize // entry_bytes),
        is_rounded=finished == factor_dtype != summed,
    )


class _Sum:
    """The running sum of one parameter's gradient; its memory is taken when the first of it comes."""

    def __init__(self, head: Head, parameter: Tensor, block_count: int, given: Tensor | None):
        factors = head.weight.dtype
        self._shape, self._vocabulary, self._given = parameter.shape, head.vocabulary, given
        self._finished = finished_dtype(parameter.dtype, factors)
        self._dtype = self._finished if block_count == 1 and self._finished == factors else accumulator_dtype(factors)
        self._new_empty, self._total = head.weight.new_empty, given
        self.is_zero = given is None
        if block_count > 1:
            self.total()

    def total(self) -> Tensor:
        """Return the memory, (V, D) or, of a bias, (V, 1)."""
        if self._total is None:
            self._total = self._new_empty(self._shape, dtype=self._dtype)
        return self._total.view(len(self._total), -1)

    def add(self, panel: Panel, rows: Tensor) -> None:
        """Add panel^T @ rows (R, D)."""
        accumulate_(self.total()[panel.columns], panel.matrix, rows, overwrite=self.is_zero)

    def take_scaled(self, other: "_Sum", scale: Tensor) -> None:
        mine, theirs = (one.total()[: self._vocabulary] for one in (self, other))
        if self.is_zero:
            torch.mul(theirs, scale, out=mine)
        else:
            mine.addcmul_(theirs, scale)
        self.is_zero, other.is_zero = False, True

    def finish(self) -> Tensor | None:
        if self._given is not None:
            return None
        total = self.total().view(self._shape)
        total[0 if self.is_zero else self._vocabulary :].zero_()
        return total.to(self._finished)


class HeadGradient:
    """A running sum; a part whose gradient is not needed is None.

    Several blocks are summed in float32 (float64). A single block needs no sum: where the finished type is that of
    the factors, its matrix product rounds to it at once. Its memory is taken then, when what the block held beside
    its matrix is gone.

    The first block overwrites, so the memory is neither zeroed nor read before it. Padding rows of the
    parameter, beyond the head's vocabulary, get zeros at the end.

    A sum of the caller's takes the weight's gradient as one more block would: all blocks add to it, padding rows stay
    as they are, and nothing is left to finish.
    """

    def __init__(
        self,
        head: Head,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        block_count: int,
        weight_sum: Tensor | None = None,
    ):
        """weight, bias: the parameters that need a gradient. weight_sum: a sum of the caller's, instead of an own."""
        self._weight = None if weight is None else _Sum(head, weight, block_count, weight_sum)
        self._bias = None if bias is None else _Sum(head, bias, block_count, None)

    def add_panel(self, panel: Panel, row_scale: Tensor, scaled_rows: Tensor) -> None:
        """Add panel^T @ scaled_rows: row_scale (R,); scaled_rows (R, D), the rows times it, in the head's type."""
        if self._weight is not None:
            self._weight.add(panel, scaled_rows)
        if self._bias is not None:
            self._bias.add(panel, row_scale.to(panel.matrix.dtype).unsqueeze(1))

    def end_block(self) -> None:
        """Note that all panels of a block are in: what comes adds to them."""
        for part in (self._weight, self._bias):
            if part is not None:
                part.is_zero = False

    def take_scaled(self, other: "HeadGradient", scale: Tensor) -> None:
        """Add scale (one number) times `other`, and set `other` to zero."""
        for mine, theirs in ((self._weight, other._weight), (self._bias, other._bias)):
            if mine is not None and theirs is not None:
                mine.take_scaled(theirs, scale)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias, of the parameters' shapes; zeros when no row was ever added.

        None for what went into a sum of the caller's.
        """
        weight, bias = self._weight, self._bias
        return None if weight is None else weight.finish(), None if bias is None else bias.finish()


def spend_directions(
    panels: list[Panel],
    row_factor: Tensor,  # (R,)
    hidden: Tensor,  # (R, D), in the type of the head
    head: Head,
    d_hidden: Tensor | None,  # (R, D), overwritten; None where not needed
    d_head: HeadGradient | None,  # added to; None where not needed
    hidden_is_done: Callable[[Tensor], None] | None = None,  # called with d_hidden, ahead of the head's last product
) -> None:
    """Take row_factor times the directions back to hidden states and head, and free the panels on the way.

    The head's product of a single panel goes first, so that the rows it multiplies can stand where d_hidden will. The
    hidden states' goes first where the ranks of a shard sum d_hidden meanwhile, and where panels are many.
    """
    scale = row_factor.unsqueeze(1)
    lent = d_hidden if head.shard is None and len(panels) == 1 else None
    scaled = None
    if d_head is not None:
        dtype = direction_dtype(hidden.dtype)
        memory = torch.empty_like(hidden, dtype=dtype) if lent is None else _first_bytes(lent, dtype)
        scaled = torch.mul(hidden, scale, out=memory)
    while panels:
        panel = panels.pop(0)
        if lent is not None and d_head is not None and scaled is not None:
            d_head.add_panel(panel, row_factor, scaled)
        if d_hidden is not None:
            back_project_(d_hidden, panel.matrix, head.direction_weight[panel.columns], overwrite=panel.start == 0)
            if not panels:
                d_hidden.mul_(scale)
                if hidden_is_done is not None:
                    hidden_is_done(d_hidden)
        if lent is None and d_head is not None and scaled is not None:
            d_head.add_panel(panel, row_factor, scaled)
    if d_head is not None:
        d_head.end_block()


def _first_bytes(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return memory of the contiguous tensor as one of its shape in a type that is not wider."""
    return tensor.view(-1).view(dtype)[: tensor.numel()].view(tensor.shape)
