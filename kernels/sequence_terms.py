"""What the flow loss computes per sequence: (S,) numbers in float64, cheap, and exact for long ones."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RATIOS = ("sequence", "token_mean")


class SequenceTerms(NamedTuple):
    """One value per sequence, float64."""

    residual: Tensor
    weight: Tensor
    raw_ratio: Tensor
    loss: Tensor  # already divided by the normaliser
    d_logprob: Tensor  # d loss / d logprob, the weight held constant
    d_log_z: Tensor


@dataclass(frozen=True)
class SequenceInputs:
    """What is known before the head runs: (S,) tensors, float64 but row_count (int64), and the settings."""

    row_count: Tensor
    log_z: Tensor
    log_target: Tensor
    length_scale: Tensor
    behaviour_logprob: Tensor
    clip_low: float
    clip_high: float
    ratio: str
    normaliser: float

    def terms(self, logprob: Tensor, sequences: slice) -> SequenceTerms:
        """The terms of these sequences, given the sum of log-probs of each.

        An empty sequence has residual 0, ratio and weight 1, and no gradient, whatever its other inputs hold:
        length_scale = 1/0 and a log_target of NaN are what a caller naturally has for it.
        """
        row_count = self.row_count[sequences]
        is_empty = row_count == 0
        residual = (
            self.log_z[sequences] + self.length_scale[sequences] * logprob - self.log_target[sequences]
        ).masked_fill_(is_empty, 0.0)
        log_ratio = (logprob - self.behaviour_logprob[sequences]).masked_fill_(is_empty, 0.0)
        if self.ratio == "token_mean":
            log_ratio = log_ratio / row_count.clamp(min=1)
        raw_ratio = log_ratio.exp()
        weight = raw_ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        d_log_z = 2.0 * weight * residual / self.normaliser
        return SequenceTerms(
            residual=residual,
            weight=weight,
            raw_ratio=raw_ratio,
            loss=weight * residual.square() / self.normaliser,
            d_logprob=(d_log_z * self.length_scale[sequences]).masked_fill_(is_empty, 0.0),
            d_log_z=d_log_z,
        )


def sum_by_sequence(token_values: Tensor, boundaries: Tensor) -> Tensor:
    """Sums of (R,) values over the segments between boundaries, in float64; 0 for an empty one."""
    return torch.segment_reduce(token_values.double(), "sum", offsets=boundaries, axis=0, unsafe=True)
