"""Maximum likelihood of recorded responses: power self-distillation, where they were drawn from p_base^alpha.

    loss = - sum over tokens of share * log pi(token)

Whatever drew the responses, the optimum is their distribution q where share is a constant, 1 / (responses x length
limit) (length_limit). It is q(y) / |y|, normalised, for 1 / (responses x own length) (sequence_mean). With 1 / all
tokens of the update (token_mean) it lies in between, since a short response stands in updates of fewer tokens: at q
in the limit of many responses in an update, at q(y) / |y| for one. Log-probs come from `linear_logprob`, which never
holds the logits.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fastflow.config.schema import Config
from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import repeat_per_token, sum_per_sequence
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MicrobatchLoss
from fastflow.objectives.policy_gradient import token_share


class MaximumLikelihood:
    """The objective distil. Nothing is trained beside the policy, and neither base nor behaviour is asked for.

    The metric residual is minus the mean log-prob per token of a response. There is no log_z (NaN), and every
    importance weight is 1.
    """

    log_z_head = None

    def __init__(self, config: Config, policy: PackedModel):
        self._average = config.objective.distil_average
        self._limit = config.rollout.max_response_tokens

    def parameters(self) -> list[torch.nn.Parameter]:
        return []

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Compute the weight of each token from the lengths of the whole update."""
        share = token_share(facts.length, self._average, self._limit)

        def loss(hidden: Float[Tensor, "T D"], batch: PackedBatch) -> MicrobatchLoss:
            chosen = batch.sequences
            logprob = policy.logprobs(hidden[batch.rows], batch.targets)
            per_token = repeat_per_token(share[chosen].to(logprob.dtype), batch.response_lengths)
            total = sum_per_sequence(logprob.detach(), batch)
            ones = torch.ones_like(total)
            return MicrobatchLoss(
                loss=-(per_token * logprob).sum(),
                token_logprob=logprob.detach(),
                logprob=total,
                residual=-total / facts.length[chosen].clamp(min=1),
                log_z=torch.full_like(total, math.nan),
                importance=ones,
                raw_ratio=ones,
            )

        return loss
