"""The clipped surrogate of the policy gradients: GRPO and its relatives, which differ in their reward alone.

    advantage = (reward - mean of the group) / (deviation of the group + 1e-6)
    loss      = - sum over tokens of share * min(ratio * advantage, clip(ratio) * advantage) + kl * share * KL estimate

ratio is pi / pi_old of the token, or of its response; share is a token's weight in the average. Log-probs of the policy
come from `linear_logprob`, which never holds the logits. A response that is left out of the loss has a share of 0; the
others are compared with its reward, and means over responses count it, as in TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fastflow.config.methods import LIKELIHOOD_GRADIENTS, Average, KlEstimator, TokenRatio
from fastflow.config.schema import Config
from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import repeat_per_token, sum_per_sequence
from fastflow.objectives.log_z import group_mean
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MicrobatchLoss
from fastflow.objectives.policy_rewards import POLICY_REWARDS

SMALLEST_STD = 1e-6  # is added to the deviation of a group's rewards
LARGEST_LOG = 20.0  # of a ratio: beyond, float32 sums hold nothing else, and zero times infinity is no number


class Surrogate(NamedTuple):
    """gain: what each token would add to the objective, ratio times advantage, clipped; it carries gradient.

    raw: each token's ratio. entering: the ratio that counts, after clipping.
    """

    gain: Float[Tensor, " N"]
    raw: Float[Tensor, " N"]
    entering: Float[Tensor, " N"]


class PolicyGradient:
    """Any of the policy gradients that `objective.name` offers. Nothing is trained beside the policy.

    The metric residual is the advantage, and log_z the mean reward of the response's group. A response's weight and raw
    ratio are means over its tokens; they differ where at least one token was clipped.
    """

    log_z_head = None
    compares_left_out = True

    def __init__(self, config: Config, policy: PackedModel):
        self._settings = config.objective
        self._surrogate = config.surrogate
        self._importance = config.importance
        self._limit = config.rollout.max_response_tokens

    @property
    def name(self) -> str:
        return self._settings.name

    def parameters(self) -> list[torch.nn.Parameter]:
        return []

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Compute rewards and advantages of the whole update."""
        settings, bounds = self._surrogate, (self._importance.clip_low, self._importance.clip_high)
        own_reward = POLICY_REWARDS.get(self.name)
        reward = facts.reward if own_reward is None else own_reward(facts, self._settings)
        divide = settings.divide_by_std and self.name not in LIKELIHOOD_GRADIENTS
        advantage = advantages(reward, facts.group, divide_by_std=divide)
        baseline = group_mean(reward, facts.group)
        counts = ~facts.left_out
        share = token_share(facts.length * counts, settings.average, self._limit) * counts
        tokens = facts.known_tokens()
        behaviour, base = tokens.behaviour, tokens.base if settings.kl else None

        def loss(hidden: Float[Tensor, "T D"], batch: PackedBatch) -> MicrobatchLoss:
            chosen, lengths = batch.sequences, batch.response_lengths
            logprob = policy.logprobs(hidden[batch.rows], batch.targets)

            def per_token(values: Float64[Tensor, " n"]) -> Float[Tensor, " N"]:
                return repeat_per_token(values[chosen].to(logprob.dtype), lengths)

            old = tokens.of_batch(behaviour, batch)
            each = surrogate(logprob, old, per_token(advantage), lengths, settings.ratio, *bounds)
            cost = -each.gain
            if base is not None:
                cost = cost + settings.kl * kl_estimate(logprob, tokens.of_batch(base, batch), settings.kl_estimator)
            count = facts.length[chosen].clamp(min=1)
            return MicrobatchLoss(
                loss=(per_token(share) * cost).sum(),
                token_logprob=logprob.detach(),
                logprob=sum_per_sequence(logprob.detach(), batch),
                residual=advantage[chosen],
                log_z=baseline[chosen],
                importance=sum_per_sequence(each.entering, batch) / count,
                raw_ratio=sum_per_sequence(each.raw, batch) / count,
            )

        return loss


def advantages(
    reward: Float64[Tensor, " n"], group: Int64[Tensor, " n"], *, divide_by_std: bool
) -> Float64[Tensor, " n"]:
    """Compute how far each reward is above its group's mean, in units of the group's deviation where that is asked for.

    The deviation is that of a sample (n - 1), as verl and TRL take it. Equal rewards, and a group of one, give zeros.
    """
    centred = reward - group_mean(reward, group)
    if not divide_by_std:
        return centred
    count = torch.bincount(group).to(reward.dtype)
    squares = torch.zeros_like(count).index_add(0, group, centred.square())
    return centred / ((squares / (count - 1).clamp(min=1)).sqrt()[group] + SMALLEST_STD)


def token_share(length: Float64[Tensor, " n"], average: Average, limit: int) -> Float64[Tensor, " n"]:
    """Compute the weight of each of a response's tokens, from the lengths of all n responses of the update.

    limit: rollout.max_response_tokens, which Dr. GRPO divides by.
    """
    responses = max(len(length), 1)
    if average == "token_mean":
        return torch.ones_like(length) / length.sum().clamp(min=1)
    if average == "sequence_mean":
        return 1 / (responses * length.clamp(min=1))
    return torch.full_like(length, 1 / (responses * limit))


def surrogate(
    logprob: Float[Tensor, " N"],
    behaviour: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    lengths: Sequence[int],
    ratio: TokenRatio,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """Compute PPO's clipped surrogate of N tokens of S responses. lengths: tokens of each response.

    A ratio beyond its bounds carries gradient only where the gradient leads back to them. One beyond e^LARGEST_LOG or
    below its inverse is constant, as in verl: its gradient would be all that the update holds. Whichever ratio is
    taken, a token's gradient is that ratio times the advantage times the gradient of its own log-prob (for the
    geometric mean that is GSPO's gradient), so that the average alone decides how length counts.
    """
    log_ratio = logprob - behaviour
    if ratio != "token":
        owner = repeat_per_token(torch.arange(len(lengths), device=logprob.device), lengths)
        sums = log_ratio.new_zeros(len(lengths)).index_add(0, owner, log_ratio.detach())
        if ratio == "token_mean":
            sums = sums / torch.tensor(lengths, dtype=sums.dtype, device=sums.device).clamp(min=1)
        log_ratio = sums[owner] + (logprob - logprob.detach())
    raw = log_ratio.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    clipped = raw.clamp(1 - clip_low, 1 + clip_high)
    gains = raw * advantage, clipped * advantage
    entering = torch.where(gains[0] <= gains[1], raw, clipped).detach()
    return Surrogate(torch.minimum(*gains), raw.detach(), entering)


def kl_estimate(logprob: Float[Tensor, " N"], base: Float[Tensor, " N"], estimator: KlEstimator) -> Float[Tensor, " N"]:
    """Estimate KL(pi || p_base) from each sampled token, nats; never below 0.

    k3 is constant where the policy finds a token e^LARGEST_LOG times less likely than the base does: its gradient
    there would be as large, and a token that was drawn is not one of these.
    """
    d = base - logprob
    if estimator == "k2":
        return d.square() / 2
    d = d.clamp(max=LARGEST_LOG)
    return d.exp() - d - 1
