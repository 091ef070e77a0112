"""What the two ops return."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """Of the distribution softmax(logits / temperature) that each row gives, over the whole vocabulary; in nats.

    Float64 for float64 inputs, else float32.
    """

    entropy: Tensor  # (N,) -sum_v p_v log p_v, at least 0
    logsumexp: Tensor  # (N,) log sum_v exp(logit_v), the logits after bias, soft-cap and temperature
    mean_logit: Tensor  # (N,) their mean over the vocabulary; logsumexp - mean_logit - log V is KL(uniform || p)

    def rows(self, rows: slice) -> "TokenStatistics":
        """Views of these rows."""
        return TokenStatistics(*(values[rows] for values in self))

    @classmethod
    def empty(cls, row_count: int, like: Tensor, dtype: torch.dtype) -> "TokenStatistics":
        """To be filled in."""
        return cls(*(like.new_empty(row_count, dtype=dtype) for _ in cls._fields))


class FlowLoss(NamedTuple):
    """Float64 for float64 inputs, else float32. Only `loss` carries gradient."""

    loss: Tensor  # () the sum over sequences, divided by the normaliser
    logprob: Tensor  # (S,) log pi of the sequence, nats
    residual: Tensor  # (S,)
    weight: Tensor  # (S,) the clipped ratio
    raw_ratio: Tensor  # (S,) the ratio before clipping
    token_logprob: Tensor  # (N,) log pi of each row, nats
