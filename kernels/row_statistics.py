"""What a row of logits comes down to, and its log-prob and gradient without cancellation.

Per row, with logits z, target t, a reference r >= z and e_v = exp(z_v - r):

    S_o = sum of e over the entries other than the target       a sum of non-negative terms: no cancellation
    S   = S_o + e_t
    log p_t = (z_t - r) - log S = (z_t - r) - log1p(S_o + (e_t - 1))

Where r = z_t, e_t = 1 exactly, and this is -log1p(S_o): a probability that differs from one by 1e-30 still has
the log-prob -1e-30. Elsewhere S_o is at least about 1, and the rounding of e_t - 1 = expm1(z_t - r) is below that of
the sum.

    d log p_t / d z = onehot(t) - softmax(z) = -(1 / S) * [e, with -S_o in place of the target's entry]

since 1 - p_t = S_o / S. The bracket is the *direction*; the factor 1/S, and whatever coefficient the row has
in the loss, is one number per row, which the callers fold into the (R, D) factors next to the block instead of
spending a pass over (R, V).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.shard import VocabularyShard


class RowStatistics(NamedTuple):
    """One value per row, in accumulator type."""

    target_logit: Tensor  # (R,) z_t
    reference: Tensor  # (R,) r
    sum_of_others: Tensor  # (R,) S_o

    def merged(self, shard: VocabularyShard | None) -> "RowStatistics":
        """Over all shards; target_logit is already that of the rank that has the target."""
        if shard is None:
            return self
        reference = shard.maximum_(self.reference.clone())
        sum_of_others = shard.sum_(self.sum_of_others * (self.reference - reference).exp())
        return RowStatistics(self.target_logit, reference, sum_of_others)

    def target_exponential(self) -> Tensor:
        return (self.target_logit - self.reference).exp()

    def logprob(self) -> Tensor:
        """(R,) log-prob of the target, nats."""
        below = self.target_logit - self.reference
        return (below - torch.log1p(self.sum_of_others + torch.expm1(below))).clamp(max=0.0)

    def factor(self) -> Tensor:
        """(R,) d log-prob / d logits = factor * direction."""
        return -1.0 / (self.sum_of_others + self.target_exponential())
