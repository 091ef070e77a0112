"""The trajectory-balance family: one residual, log_z + length_scale * log pi(y) - log_target, in five forms.

Where every residual is zero, pi is proportional to the member's target. For `powerflow` the target is
p_base(y)^alpha * exp(-log_z * |y|), times exp(alpha * psi * |y|) for malformed responses. Its residual is per token:
long and short responses have equal weight, and length is a part of the target instead of an accident of the loss. psi
has the residual's unit: nats per token for `powerflow` and `flowrl`, per response for the others, where the same number
is a smaller penalty.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from fastflow.config.schema import ObjectiveConfig
from fastflow.objectives.objective import Evidence

Terms = tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]  # length_scale, log_target


def powerflow(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Length-aware trajectory balance (PowerFlow): 1/|y|, and alpha * (mean log p_base + psi)."""
    scale = 1 / evidence.length.clamp(min=1)
    return scale, settings.alpha * (scale * evidence.base_logprob + evidence.penalty)


def tb_trajectory(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Standard trajectory balance on p_base^alpha: lengths collapse for alpha above 1."""
    log_target = settings.alpha * (evidence.base_logprob + evidence.penalty)
    return torch.ones_like(evidence.length), log_target


def tb_token(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Trajectory balance on p_base * exp((alpha - 1) * mean log p_base): responses decay into repetition.

    The form is not published. This is its natural reading, with psi beside the token mean, once a response.
    """
    mean = evidence.base_logprob / evidence.length.clamp(min=1)
    log_target = evidence.base_logprob + (settings.alpha - 1) * mean + settings.alpha * evidence.penalty
    return torch.ones_like(evidence.length), log_target


def flowrl(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """FlowRL: 1/|y|, and beta * reward + mean log p_base + psi. The user brings the reward."""
    scale = 1 / evidence.length.clamp(min=1)
    return scale, settings.beta * evidence.reward + scale * evidence.base_logprob + evidence.penalty


def tba(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """TBA (trajectory balance with asynchrony): 1, and log p_base + beta * reward + psi, with log_z the group's mean.

    Its authors write reward / beta. The reward is taken as it is: the group's mean removes what all responses share.
    """
    log_target = evidence.base_logprob + settings.beta * evidence.reward + evidence.penalty
    return torch.ones_like(evidence.length), log_target


OBJECTIVES: dict[str, Callable[[Evidence, ObjectiveConfig], Terms]] = {
    "powerflow": powerflow,
    "tb_trajectory": tb_trajectory,
    "tb_token": tb_token,
    "flowrl": flowrl,
    "tba": tba,
}
