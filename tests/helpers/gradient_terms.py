"""How large the numbers are that an entry of a gradient is the sum of: their roundings are measured against that."""

from __future__ import annotations

import torch
from torch import Tensor


def sizes_of_terms(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    coefficient: Tensor,
    temperature: float = 1.0,
    least_of_target: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """For hidden (N, D) and for weight (V, D): sums of |term|, of the gradient of sum(coefficient * log-prob).

    least_of_target: what 1 - p of a target counts at least.
    """
    hidden, weight = hidden.detach().double(), weight.detach().double()
    probability = (hidden @ weight.mT / temperature).softmax(1)
    is_target = torch.nn.functional.one_hot(targets, weight.shape[0])
    slope = torch.maximum((is_target - probability).abs(), is_target * least_of_target)
    slope *= coefficient.double().abs().unsqueeze(1) / temperature
    return slope @ weight.abs(), slope.mT @ hidden.abs()
