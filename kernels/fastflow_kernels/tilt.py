"""The gradient of a row's log-prob, entropy and logsumexp taken together, as one direction.

With the scaled logits y, p = softmax(y), the entropy H, and upstream gradients g of the log-prob, h of the entropy and
l of the logsumexp, the gradient with respect to y_v is

    g (onehot_v - p_v) - h p_v (log p_v + H) + l p_v

With e and S as in row_statistics.py, and u_v = log e_v, so that log p_v = u_v - log S, that is

    -(1 / S) * [e_v (g - l + h (u_v - log S + H)), with -g S_o + e_t (h (log p_t + H) - l) in the target's place]

The bracket is the *tilted direction*: exponentials times an affine function of their own exponents.

Where one token has nearly all of the probability, log p_v + H is the small difference of numbers as large as the
logits: of u_v, and of log S and H. The forward pass leaves log p_t, H and the logsumexp, which are rounded to their own
size: an error c of log S or H adds c p_v to every entry. So a gradient of the entropy measures log S and H once more,
against about the largest of the very logits that its direction is made of: there both are small, and nothing cancels.

Without one, `fused` takes S from log p_t, for any reference, before the sweep that stores the bracket,

    log S = u_t - log p_t

so that no sweep has to look for the largest logit. The logsumexp is the natural reference, S is about 1 then; but
whatever its rounding, u_t is taken against the rounded one, and all digits are kept that log p_t has. A target whose
logit is -inf tells nothing of S: the logsumexp itself is the reference then, and S is 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.row_statistics import RowStatistics


class Tilt(NamedTuple):
    """(R,) each, in accumulator type."""

    upstream_logprob: Tensor  # g
    upstream_entropy: Tensor | None  # h; None for 0
    upstream_logsumexp: Tensor  # l
    logprob: Tensor  # log p_t, nats
    entropy: Tensor  # H, nats
    logsumexp: Tensor  # nats

    @classmethod
    def of(
        cls,
        logprob: Tensor,
        entropy: Tensor,
        logsumexp: Tensor,
        *,
        upstream_logprob: Tensor | None,
        upstream_entropy: Tensor | None,
        upstream_logsumexp: Tensor | None,
    ) -> "Tilt":
        """From the forward pass's outputs and their upstream gradients, (N,) each; None for 0.

        All are made contiguous, as kernels read them: the gradient of a sum is one number with a stride of 0.
        """

        def known(values: Tensor | None) -> Tensor:
            return torch.zeros_like(logprob) if values is None else values.to(logprob.dtype).contiguous()

        return cls(
            known(upstream_logprob),
            None if upstream_entropy is None else known(upstream_entropy),
            known(upstream_logsumexp),
            *(values.contiguous() for values in (logprob, entropy, logsumexp)),
        )

    def rows(self, rows: slice) -> "Tilt":
        """Views of these rows."""
        return Tilt._make(None if values is None else values[rows] for values in self)

    def measured(self, statistics: RowStatistics) -> "Tilt":
        """Take log-probs and entropies from statistics with moments, of the logits that the direction is made of."""
        return self._replace(logprob=statistics.logprob(), entropy=statistics.token_statistics().entropy)

    def statistics(self, target_logit: Tensor, scale: float) -> RowStatistics:
        """Of rows that are measured against their logsumexp. target_logit: (R,) over all shards, before the scale."""
        told = target_logit - self.logprob / scale
        reference = torch.where(target_logit.isneginf(), self.logsumexp / scale, told)
        statistics = RowStatistics(target_logit, reference, torch.empty_like(reference), scale)
        below = statistics.target_below_reference()
        total = torch.where(below.isneginf(), 0.0, below - self.logprob).exp()
        return statistics._replace(sum_of_others=-total * torch.expm1(self.logprob))

    def affine(self, statistics: RowStatistics) -> tuple[Tensor, Tensor]:
        """(constant, slope), (R,) each: an entry is e_v (constant + slope u_v), u_v in nats."""
        constant = self.upstream_logprob - self.upstream_logsumexp
        if self.upstream_entropy is None:
            return constant, torch.zeros_like(constant)
        return constant + self.upstream_entropy * (self.entropy - statistics.log_total()), self.upstream_entropy

    def target_entry(self, statistics: RowStatistics) -> Tensor:
        """(R,), ahead of the soft-cap's slope."""
        below = statistics.target_below_reference()
        own = -self.upstream_logsumexp
        if self.upstream_entropy is not None:
            own = own + self.upstream_entropy * (self.logprob + self.entropy)
        own = torch.where(below.isneginf(), 0.0, own * below.exp())
        return own - self.upstream_logprob * statistics.sum_of_others
