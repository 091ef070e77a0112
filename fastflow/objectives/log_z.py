"""log_z, the log normaliser per token of a prompt: a learned network, or the mean over the group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from fastflow.config.released import ReleasedConfig
from fastflow.data.packing import PackedBatch
from fastflow.objectives.dropout import dropped

LAYERS = 3  # of each of the two blocks


@dataclass(frozen=True)
class LogZForm:
    """What the released code does in another way, see `released` in the settings.

    offset: is taken from the output, nats per token; None starts it at the first batch's optimum instead. dropout:
    share of units. without_last: leave a prompt's last token out of its mean, unless it is the only one.
    """

    offset: float | None = None
    dropout: float = 0.0
    without_last: bool = False

    @classmethod
    def of(cls, released: ReleasedConfig, alpha: float) -> LogZForm:
        """The form that a run's settings name."""
        offset = None if released.log_z_offset is None else released.log_z_offset * (alpha - 1)
        return cls(offset, released.log_z_dropout, released.log_z_prompt == "without_last")


class LearnedLogZ(nn.Module):
    """Maps the mean of a prompt's last-layer hidden states to one scalar per sequence (as the paper, after FlowRL).

    It is (Linear, GELU, LayerNorm) twice, then a linear layer whose weights start at zero, so the first output is its
    bias alone. `calibrate` starts that bias at the first batch's optimum. From zero, with the policy's learning rate,
    lengths would explode before the bias is right. FlowRL's dropout is off by default. Where it is on, each response
    has masks of its own, which follow from its seed: how sequences are packed into micro-batches changes nothing.
    """

    calibrated: Bool[Tensor, ""]

    def __init__(self, width: int, form: LogZForm | None = None):
        super().__init__()
        self.form = form or LogZForm()
        self.body = nn.Sequential(*(layer for _ in range(2) for layer in _block(width)))
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("calibrated", torch.tensor(False))

    def forward(
        self, hidden: Float[Tensor, "T D"], batch: PackedBatch, seeds: Int64[Tensor, " S"] | None = None
    ) -> Float32[Tensor, " S"]:
        """Compute log_z from hidden states of the policy. Gradient flows into the policy.

        seeds: of the responses, which dropout reads; without them there is none.
        """
        dtype = self.out.weight.dtype
        rows, owner = batch.prompt_rows, batch.prompt_owner
        if self.form.without_last:
            chosen = _all_but_last(batch.prompt_lengths).to(rows.device)
            rows, owner = rows[chosen], owner[chosen]
        count = torch.zeros(len(batch.lengths), dtype=dtype, device=hidden.device)
        count = count.index_add(0, owner, torch.ones_like(owner, dtype=dtype))
        total = torch.zeros(len(batch.lengths), hidden.shape[1], dtype=dtype, device=hidden.device)
        total = total.index_add(0, owner, hidden[rows].to(dtype))
        mean = total / count.unsqueeze(1)
        features = self.body(mean) if seeds is None else self._with_dropout(mean, seeds)
        return (self.out(features).squeeze(1) - (self.form.offset or 0.0)).float()

    def _with_dropout(self, values: Float[Tensor, "S D"], seeds: Int64[Tensor, " S"]) -> Float[Tensor, "S D"]:
        for layer in range(2):
            block = self.body[layer * LAYERS : (layer + 1) * LAYERS]
            values = dropped(block(values), seeds, self.form.dropout, layer)
        return values

    @torch.no_grad()
    def calibrate(self, optimum: Float[Tensor, " n"]) -> None:
        """Set the bias to the mean of the first batch's group means. Later calls do nothing, nor does any with an
        offset.
        """
        if self.form.offset is None and not self.calibrated:
            self.out.bias.fill_(float(optimum.mean()))
            self.calibrated.fill_(True)


def _block(width: int) -> list[nn.Module]:
    return [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]


def _all_but_last(prompt_lengths: Sequence[int]) -> Int64[Tensor, " _"]:
    """Places of all prompt tokens but each prompt's last, in a batch's order. A prompt of one token keeps it."""
    lengths = torch.tensor(prompt_lengths)
    chosen = torch.ones(int(lengths.sum()), dtype=torch.bool)
    chosen[(lengths.cumsum(0) - 1)[lengths > 1]] = False
    return chosen.nonzero().squeeze(1)


def group_mean(negated_rest: Float[Tensor, " n"], group: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Compute the log_z that makes each group's mean residual zero (GFlowRL, TBA): a constant, without a network.

    The learner takes log pi from the rollout. This log_z is therefore exact in the first update, and a rollout old in
    later ones.

    negated_rest: log_target - length_scale * log pi of each trajectory. group: the group of each.
    Returns every trajectory's group mean: of equal values exactly that value, although their sum is rounded.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    lowest = torch.full((groups,), math.inf, dtype=negated_rest.dtype, device=group.device)
    lowest = lowest.scatter_reduce(0, group, negated_rest, "amin")
    above = torch.zeros_like(lowest).index_add(0, group, negated_rest - lowest[group])
    return (lowest + above / torch.bincount(group, minlength=groups))[group]
