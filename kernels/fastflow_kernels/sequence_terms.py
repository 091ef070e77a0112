"""Computes what the flow loss needs per sequence: (S,) numbers in float64, cheap, and exact for long sequences."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.blocks import SequenceBlock

RATIOS = ("sequence", "token_mean")


class SequenceTerms(NamedTuple):
    """One value per sequence, float64, filled in as the sequences end."""

    logprob: Tensor
    residual: Tensor
    importance: Tensor  # the clipped ratio
    raw_ratio: Tensor
    loss: Tensor  # already divided by the normaliser
    d_logprob: Tensor  # d loss / d logprob, the importance held constant
    d_log_z: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> "SequenceTerms":
        return cls(*(torch.zeros_like(like) for _ in cls._fields))


@dataclass(frozen=True)
class SequenceInputs:
    """What is known before the head runs: (S,) tensors in float64, and the settings."""

    log_z: Tensor
    log_target: Tensor
    length_scale: Tensor
    behaviour_logprob: Tensor
    clip_low: float
    clip_high: float
    ratio: str
    normaliser: float


def settle_sequences_(
    terms: SequenceTerms,
    inputs: SequenceInputs,
    offsets: Tensor,
    block: SequenceBlock,
    token_logprob: Tensor,
    row_factor: Tensor,
) -> None:
    """Add a block's log-probs (R,) to `terms`, complete its finished sequences, scale `row_factor` (R,).

    offsets: cu_seqlens (S+1,) int64. A whole sequence's rows get the factor d loss / d logprob; the rows of a
    part of a sequence do not, since its log-prob is not known before the last part.

    An empty sequence has residual 0, ratio 1 and no gradient, whatever its other inputs hold: a caller naturally has
    length_scale = 1/0 and a log_target of nan for it.
    """
    own = block.sequences
    own_offsets = offsets[block.sequence_start : block.sequence_stop + 1]
    terms.logprob[own] += sum_by_sequence(token_logprob, (own_offsets - block.row_start).clamp(0, block.row_count))
    if not block.closes:
        return
    row_count = own_offsets.diff()
    is_empty = row_count == 0
    logprob = terms.logprob[own]
    residual = (inputs.log_z[own] + inputs.length_scale[own] * logprob - inputs.log_target[own]).masked_fill_(
        is_empty, 0.0
    )
    log_ratio = (logprob - inputs.behaviour_logprob[own]).masked_fill_(is_empty, 0.0)
    if inputs.ratio == "token_mean":
        log_ratio = log_ratio / row_count.clamp(min=1)
    raw_ratio = log_ratio.exp()
    importance = raw_ratio.clamp(1.0 - inputs.clip_low, 1.0 + inputs.clip_high)
    d_log_z = 2.0 * importance * residual / inputs.normaliser
    terms.residual[own], terms.raw_ratio[own], terms.importance[own] = residual, raw_ratio, importance
    terms.loss[own] = importance * residual.square() / inputs.normaliser
    terms.d_log_z[own] = d_log_z
    terms.d_logprob[own] = (d_log_z * inputs.length_scale[own]).masked_fill_(is_empty, 0.0)
    if not block.is_part:
        d_logprob = terms.d_logprob[own].to(row_factor.dtype)
        row_factor *= d_logprob.repeat_interleave(row_count, output_size=block.row_count)


def sum_by_sequence(token_values: Tensor, boundaries: Tensor) -> Tensor:
    """Sum (R,) values over the segments between boundaries, in float64; 0 for an empty one."""
    return torch.segment_reduce(token_values.double(), "sum", offsets=boundaries, axis=0, unsafe=True)
