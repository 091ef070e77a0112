"""What a row of logits comes down to, and its log-prob and gradient without cancellation.

Per row, with logits z, target t, a reference r of about their largest and e_v = exp(z_v - r):

    S_o = sum of e over the entries other than the target       a sum of non-negative terms: no cancellation
    S   = S_o + e_t
    log p_t = -log1p(S_o exp(r - z_t))

A probability that differs from one by 1e-30 still has the log-prob -1e-30 (but in hopper, which sums the target along
and takes it out again: there, absolute errors are 3e-7), and a reference that is off by a rounding
changes nothing. Where exp(r - z_t) would overflow, e_t is nothing beside S_o: log p_t = (z_t - r) - log S.

    d log p_t / d z = onehot(t) - softmax(z) = -(1 / S) * [e, with -S_o in place of the target's entry]

since 1 - p_t = S_o / S. The bracket is the *direction*; the factor 1/S, and whatever coefficient the row has
in the loss, is one number per row, which the callers fold into the (R, D) factors next to the block instead of
spending a pass over (R, V).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.moments import Moments, token_statistics
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.shard import VocabularyShard

FAR_BELOW = -50.0  # nats; its exponential is 0 beside 1


class RowStatistics(NamedTuple):
    """One value per row, in accumulator type. Logits stand here before `scale`: their differences are multiplied by it,
    which keeps digits that products with it would lose."""

    target_logit: Tensor  # (R,) z_t
    reference: Tensor  # (R,) r
    sum_of_others: Tensor  # (R,) S_o
    scale: float = 1.0
    moments: Moments | None = None  # where entropy, logsumexp and mean logit are asked for

    def merged(self, shard: VocabularyShard | None) -> "RowStatistics":
        """Over all shards; target_logit is already that of the rank that has the target.

        The ranks meet once for both numbers, since a sum that waits for the reference would be a second meeting. Each
        adds up in the order of the ranks, so all have the same bits.
        """
        if shard is None:
            return self
        references, sums = shard.gathered(torch.stack([self.reference, self.sum_of_others])).unbind(dim=1)
        reference = references.amax(dim=0)
        sum_of_others = (sums * ((references - reference) * self.scale).exp()).sum(dim=0)
        moments = None if self.moments is None else self._merged_moments(self.moments, shard, reference)
        return RowStatistics(self.target_logit, reference, sum_of_others, self.scale, moments)

    def _merged_moments(self, moments: Moments, shard: VocabularyShard, reference: Tensor) -> Moments:
        """One reduction for all of them. A shard of nothing but -inf adds no probability."""
        shift = ((self.reference - reference) * self.scale).clamp(min=torch.finfo(reference.dtype).min)
        own = moments.rebased(self.sum_of_others, shift, self.ratio_to(reference))
        columns = torch.full_like(own.weighted, int(own.columns))
        return Moments(*shard.sum_(torch.stack([own.weighted, own.logit_sum, columns])))

    def ratio_to(self, reference: Tensor) -> Tensor:
        """What exponentials against the own reference are multiplied by, to be those against this one."""
        return ((self.reference - reference) * self.scale).exp()

    def target_below_reference(self) -> Tensor:
        return (self.target_logit - self.reference) * self.scale

    def log_total(self) -> Tensor:
        """(R,) log S, nats; keeps its digits also where the target has nearly all of the probability."""
        return torch.log1p(self.sum_of_others + torch.expm1(self.target_below_reference()))

    def logprob(self) -> Tensor:
        """(R,) log-prob of the target, nats."""
        below = self.target_below_reference()
        near = -torch.log1p(self.sum_of_others * (-below).exp())
        return torch.where(below > FAR_BELOW, near, below - (self.sum_of_others + below.exp()).log())

    def token_statistics(self) -> TokenStatistics:
        """(R,) each, of rows whose moments were taken."""
        assert self.moments is not None, "the sweep over these rows took no moments"
        own = self.target_below_reference().exp()
        return token_statistics(self.moments, self.sum_of_others, own, self.log_total(), self.reference, self.scale)

    def factor(self) -> Tensor:
        """(R,) d log-prob / d logits = factor * direction."""
        return -1.0 / (self.sum_of_others + self.target_below_reference().exp())
