"""The gradient of the head (weight and bias), summed over blocks of rows in float32 or float64."""

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.matmul import accumulate_


class HeadGradient:
    """A running sum; its parts are None where that gradient is not needed.

    The first block overwrites, so the memory is neither zeroed nor read before it. Padding rows of the
    parameter, beyond the head's vocabulary, get zeros at the end.
    """

    def __init__(self, head: Head, padded_vocabulary: int, *, need_weight: bool, need_bias: bool, dtype: torch.dtype):
        shape = (padded_vocabulary, head.weight.shape[1])
        self._vocabulary = head.vocabulary
        self._weight = head.weight.new_empty(shape, dtype=dtype) if need_weight else None
        self._bias = head.weight.new_empty(padded_vocabulary, dtype=dtype) if need_bias else None
        self._is_zero = True

    def add_rows(self, direction: Tensor, row_scale: Tensor, hidden: Tensor) -> None:
        """Adds direction^T @ (row_scale * hidden): direction (R, V), row_scale (R,), hidden (R, D)."""
        if self._weight is not None:
            scaled = torch.mul(hidden, row_scale.unsqueeze(1), out=torch.empty_like(hidden))
            accumulate_(self._weight[: self._vocabulary], direction, scaled, overwrite=self._is_zero)
        if self._bias is not None:
            column = row_scale.to(direction.dtype).unsqueeze(1)
            bias = self._bias[: self._vocabulary].unsqueeze(1)
            accumulate_(bias, direction, column, overwrite=self._is_zero)
        self._is_zero = False

    def take_scaled(self, other: "HeadGradient", scale: Tensor) -> None:
        """Adds scale (one number) times `other`, and sets `other` to zero."""
        for mine, theirs in ((self._weight, other._weight), (self._bias, other._bias)):
            if mine is not None and theirs is not None:
                if self._is_zero:
                    torch.mul(theirs, scale, out=mine)
                else:
                    mine.addcmul_(theirs, scale)
        self._is_zero = False
        other._is_zero = True

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """(weight, bias) gradients, of the parameters' shapes; zeros when no row was ever added."""
        start = 0 if self._is_zero else self._vocabulary
        for total in (self._weight, self._bias):
            if total is not None:
                total[start:].zero_()
        return self._weight, self._bias
