"""How large the numbers are that each entry of a gradient is the sum of: roundings are measured against them."""

from __future__ import annotations

import torch
from torch import Tensor


def sizes_of_terms(
    hidden: Tensor, weight: Tensor, targets: Tensor, coefficient: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """For hidden (N, D) and for weight (V, D): sums of |term|, of the gradient of sum(coefficient * log-prob)."""
    hidden, weight = hidden.detach().double(), weight.detach().double()
    probability = (hidden @ weight.mT / temperature).softmax(1)
    slope = (torch.nn.functional.one_hot(targets, weight.shape[0]) - probability).abs()
    slope *= coefficient.double().abs().unsqueeze(1) / temperature
    return slope @ weight.abs(), slope.mT @ hidden.abs()
