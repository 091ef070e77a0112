"""Rewards that the models' probabilities decide: how sure the policy is, how likely the base finds a response."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from fastflow.config.schema import ObjectiveConfig
from fastflow.objectives.objective import Facts
from fastflow.objectives.trajectory_balance import tb_token, tb_trajectory


def intuitor(facts: Facts, settings: ObjectiveConfig) -> Float64[Tensor, " n"]:
    """Intuitor: mean over the response's tokens of logsumexp(logits) - mean(logits), the policy's self-certainty.

    It is KL(uniform || pi) plus the constant log V, which no advantage sees.
    """
    return facts.known_tokens().certainty.self_certainty


def rent(facts: Facts, settings: ObjectiveConfig) -> Float64[Tensor, " n"]:
    """RENT: minus the mean entropy of the policy's next-token distributions, nats.

    Where `rent_unanswered` is set, facts.reward holds it for responses without an answer, and takes the place.
    """
    certain = -facts.known_tokens().certainty.entropy
    return certain if settings.rent_unanswered is None else torch.where(facts.reward == 0, certain, facts.reward)


def rl_trajectory(facts: Facts, settings: ObjectiveConfig) -> Float64[Tensor, " n"]:
    """Ascend (alpha - 1) E[log p_base(y)] - KL(pi || p_base). The optimum is p_base^alpha.

    The reward is alpha * (log p_base + psi) - log pi, with log pi of the rollout: that is exact in the first update.
    """
    return tb_trajectory(facts, settings)[1] - facts.behaviour_logprob


def rl_token(facts: Facts, settings: ObjectiveConfig) -> Float64[Tensor, " n"]:
    """The same with the token mean, E[log p_base(y) / |y|]: it leads to p_base * exp((alpha - 1) mean log p_base)."""
    return tb_token(facts, settings)[1] - facts.behaviour_logprob


POLICY_REWARDS: dict[str, Callable[[Facts, ObjectiveConfig], Float64[Tensor, " n"]]] = {
    "intuitor": intuitor,
    "rent": rent,
    "rl_trajectory": rl_trajectory,
    "rl_token": rl_token,
}
