"""PowerFlow's loss as its released code has it: tokens whose ratio is beyond its bounds count for nothing.

    keep_t   = 1 - clip_low <= pi / pi_old of token t <= 1 + clip_high
    residual = log_z + mean_keep(log pi) - alpha * (mean_keep(log p_base) + psi)
    clipped  = clip(exp(sum_keep(log pi - log pi_old))), detached
    loss     = sum over responses of clipped * residual^2 / normaliser

|y| is the number of tokens that stay. Which they are is known with log pi alone, so that the loss goes through
`linear_logprob` in place of `flow_loss`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import sum_per_sequence
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MicrobatchLoss

LARGEST_LOG = 80.0  # of a ratio: float32 holds its exponential


class MaskedFlow(FlowObjective):
    """PowerFlow with the token mask. A response of which no token stays adds nothing to the loss.

    A response's weight is that of the tokens that stay. Its raw ratio and its log-prob are those of all its tokens, so
    that the two ratios differ wherever a token went or the ratio was clipped.
    """

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Compute what is known of the whole update: log_z, and the tokens' log-probs under pi_old and p_base."""
        importance, alpha = self._importance, self._settings.alpha
        scale = 1 / facts.length.clamp(min=1)
        all_tokens = scale * (alpha * facts.base_logprob - facts.behaviour_logprob) + alpha * facts.penalty
        log_z_of = self.log_z(facts, all_tokens)
        tokens = facts.known_tokens()
        behaviour, base = tokens.behaviour, tokens.base

        def loss(hidden: Float[Tensor, "T D"], batch: PackedBatch) -> MicrobatchLoss:
            logprob = policy.logprobs(hidden[batch.rows], batch.targets)
            log_ratio = (logprob.detach() - tokens.of_batch(behaviour, batch)).double()
            keep = stays(log_ratio, importance.clip_low, importance.clip_high)
            count = sum_per_sequence(keep.double(), batch)

            def mean(values: Float[Tensor, " N"]) -> Float64[Tensor, " S"]:
                return sum_per_sequence(torch.where(keep, values.double(), 0.0), batch) / count.clamp(min=1)

            def ratio(mean_log: Float64[Tensor, " S"], count: Float64[Tensor, " S"]) -> Float64[Tensor, " S"]:
                exponent = mean_log * count if importance.ratio == "sequence" else mean_log
                return exponent.clamp(-LARGEST_LOG, LARGEST_LOG).exp()

            log_z = log_z_of(hidden, batch)
            target = alpha * (mean(tokens.of_batch(base, batch)) + facts.penalty[batch.sequences])
            residual = torch.where(count > 0, log_z.double() + mean(logprob) - target, 0.0)
            clipped = ratio(mean(log_ratio), count).clamp(1 - importance.clip_low, 1 + importance.clip_high)
            length = facts.length[batch.sequences].clamp(min=1)
            raw = ratio(sum_per_sequence(log_ratio, batch) / length, length)
            return MicrobatchLoss(
                loss=((clipped * residual.square()).sum() / len(facts.length)).float(),
                token_logprob=logprob.detach(),
                logprob=sum_per_sequence(logprob.detach(), batch),
                residual=residual.detach(),
                log_z=log_z.detach(),
                importance=clipped,
                raw_ratio=raw,
            )

        return loss


def stays(log_ratio: Float64[Tensor, " N"], clip_low: float, clip_high: float) -> Bool[Tensor, " N"]:
    """Decide for each token whether its pi / pi_old is within the bounds, themselves included."""
    ratio = log_ratio.clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    return (ratio >= 1 - clip_low) & (ratio <= 1 + clip_high)
