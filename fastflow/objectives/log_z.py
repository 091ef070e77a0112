"""log_z, the log normaliser per token of a prompt: a learned network, or the mean over the group."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from fastflow.data.packing import PackedBatch


class LearnedLogZ(nn.Module):
    """Maps the mean of a prompt's last-layer hidden states to one scalar per sequence (as the paper, after FlowRL).

    It is (Linear, GELU, LayerNorm) twice, then a linear layer whose weights start at zero, so the first output is its
    bias alone. `calibrate` starts that bias at the first batch's optimum. From zero, with the policy's learning rate,
    lengths would explode before the bias is right. FlowRL's dropout is left out: with it the gradient would depend on
    how sequences are packed into micro-batches.
    """

    calibrated: Bool[Tensor, ""]

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(*(layer for _ in range(2) for layer in _block(width)))
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("calibrated", torch.tensor(False))

    def forward(self, hidden: Float[Tensor, "T D"], batch: PackedBatch) -> Float32[Tensor, " S"]:
        """Compute log_z from hidden states of the policy. Gradient flows into the policy."""
        dtype = self.out.weight.dtype
        count = torch.zeros(len(batch.lengths), dtype=dtype, device=hidden.device)
        count = count.index_add(0, batch.prompt_owner, torch.ones_like(batch.prompt_owner, dtype=dtype))
        total = torch.zeros(len(batch.lengths), hidden.shape[1], dtype=dtype, device=hidden.device)
        total = total.index_add(0, batch.prompt_owner, hidden[batch.prompt_rows].to(dtype))
        return self.out(self.body(total / count.unsqueeze(1))).squeeze(1).float()

    @torch.no_grad()
    def calibrate(self, optimum: Float[Tensor, " n"]) -> None:
        """Set the bias to the mean of the first batch's group means. Later calls do nothing."""
        if not self.calibrated:
            self.out.bias.fill_(float(optimum.mean()))
            self.calibrated.fill_(True)


def _block(width: int) -> list[nn.Module]:
    return [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]


def group_mean(negated_rest: Float[Tensor, " n"], group: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Compute the log_z that makes each group's mean residual zero (GFlowRL, TBA): a constant, without a network.

    The learner takes log pi from the rollout. This log_z is therefore exact in the first update, and a rollout old in
    later ones.

    negated_rest: log_target - length_scale * log pi of each trajectory. group: the group of each.
    Returns every trajectory's group mean.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    total = torch.zeros(groups, dtype=negated_rest.dtype, device=group.device).index_add(0, group, negated_rest)
    return (total / torch.bincount(group, minlength=groups))[group]
