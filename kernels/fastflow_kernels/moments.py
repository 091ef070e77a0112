"""Entropy, logsumexp and mean logit of a row, from two more sums that the sweep over its logits leaves.

With e, S and S_o as in row_statistics.py, and u_v = (z_v - r) * scale, so that e_v = exp(u_v):

    logsumexp   = r * scale + log S
    entropy     = log S - (sum_v e_v u_v) / S
    mean logit  = scale * (sum_v z_v) / V

log S = log1p(S_o + expm1(u_t)) keeps its digits also where the target has nearly all of the probability. Where r is the
largest logit, as all ways but `fused` have it, both terms of the entropy are at least 0, and nothing cancels. A logit
of -inf has no probability and adds nothing to the entropy; the mean logit is -inf then.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.reference import TokenStatistics


class Moments(NamedTuple):
    """Of the logits of a row, as far as this head has them."""

    weighted: Tensor  # (R,) sum of e u over the entries other than the target, nats
    logit_sum: Tensor  # (R,) sum of all logits, the target's too, before the scale
    columns: Tensor | int  # how many logits a row has; (R,) or one number

    @classmethod
    def zeros(cls, like: Tensor) -> "Moments":
        """Of no logits yet."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), 0)

    def plus(self, weighted: Tensor, logit_sum: Tensor, columns: int) -> "Moments":
        """With further columns of the same rows, measured against the same reference."""
        return Moments(self.weighted + weighted, self.logit_sum + logit_sum, self.columns + columns)

    def rebased(self, total: Tensor, shift: Tensor, ratio: Tensor) -> "Moments":
        """Measured against another reference.

        total: (R,) sum of e over the entries other than the target; shift: (R,) old minus new reference, nats, finite;
        ratio: (R,) exp(shift), or 0 where total is.
        """
        return self._replace(weighted=(self.weighted + total * shift) * ratio)


def token_statistics(
    moments: Moments,
    sum_of_others: Tensor,
    target_exponential: Tensor,
    log_total: Tensor,
    reference: Tensor,
    scale: float,
) -> TokenStatistics:
    """Of rows, all shards taken together: (R,) each, nats. reference: (R,), before the scale."""
    weighted = moments.weighted + torch.special.xlogy(target_exponential, target_exponential)
    entropy = log_total - weighted / (sum_of_others + target_exponential)
    return TokenStatistics(
        entropy=entropy.clamp_(min=0.0),  # below it by roundings alone
        logsumexp=reference * scale + log_total,
        mean_logit=moments.logit_sum * scale / moments.columns,
    )
