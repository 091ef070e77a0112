"""The gradient of the head (weight and bias), summed over blocks of rows in float32 or float64."""

import torch
from torch import Tensor

from fastflow_kernels.matmul import accumulate_


class HeadGradient:
    """A running sum; `weight` (V, D) and `bias` (V,) are None where that gradient is not needed.

    The first block overwrites, so the memory is neither zeroed nor read before it.
    """

    def __init__(self, weight: Tensor, *, need_weight: bool, need_bias: bool, dtype: torch.dtype):
        self.weight = torch.empty_like(weight, dtype=dtype) if need_weight else None
        self.bias = weight.new_empty(weight.shape[0], dtype=dtype) if need_bias else None
        self._is_zero = True

    def is_needed(self) -> bool:
        return self.weight is not None or self.bias is not None

    def add_rows(self, direction: Tensor, row_scale: Tensor, hidden: Tensor) -> None:
        """Adds direction^T @ (row_scale * hidden): direction (R, V), row_scale (R,), hidden (R, D)."""
        if self.weight is not None:
            scaled = (row_scale.unsqueeze(1) * hidden).to(hidden.dtype)
            accumulate_(self.weight, direction, scaled, overwrite=self._is_zero)
        if self.bias is not None:
            torch.addmv(self.bias, direction.t(), row_scale, beta=0 if self._is_zero else 1, out=self.bias)
        self._is_zero = False

    def take_scaled(self, other: "HeadGradient", scale: Tensor) -> None:
        """Adds scale (a scalar tensor) times `other`, and sets `other` to zero."""
        for mine, theirs in ((self.weight, other.weight), (self.bias, other.bias)):
            if mine is not None and theirs is not None:
                if self._is_zero:
                    torch.mul(theirs, scale, out=mine)
                else:
                    mine.addcmul_(theirs, scale)
        self._is_zero = False
        other._is_zero = True

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """(weight, bias) gradients; zeros when no row was ever added."""
        if self._is_zero:
            for total in (self.weight, self.bias):
                if total is not None:
                    total.zero_()
        return self.weight, self.bias
