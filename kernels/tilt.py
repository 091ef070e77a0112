"""The gradient of a row's log-prob, entropy and logsumexp taken together, as one direction.

With the scaled logits y, p = softmax(y), upstream gradients g of the log-prob, h of the entropy and l of the logsumexp,
and E = sum_v p_v y_v, the gradient with respect to y_v is

    g (onehot_v - p_v) - h p_v (y_v - E) + l p_v

since d entropy / d y_v = -p_v (log p_v + entropy) and log p_v + entropy = y_v - E. As row_statistics.py has it, that is

    -(1 / S) * [e_v (g - l + h (y_v - E)), with -g S_o + e_t (h (y_t - E) - l) in place of the target's entry]

The bracket is the *tilted direction*: exponentials times an affine function of their own exponents. It needs E before
the sweep that stores it. The forward pass has left it, relative to the target, where it keeps the digits that a sum of
large logits would lose:

    E - y_t = -(log p_t + entropy)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.row_statistics import RowStatistics


class Tilt(NamedTuple):
    """(R,) each, in accumulator type."""

    logprob: Tensor  # g
    entropy: Tensor  # h
    logsumexp: Tensor  # l
    centre: Tensor  # E - y_t, nats

    def affine(self, target_below_reference: Tensor) -> tuple[Tensor, Tensor]:
        """(constant, slope), (R,) each: an entry is e_v (constant + slope u_v), u_v = y_v minus the reference, nats.

        target_below_reference: (R,) u_t.
        """
        return self.logprob - self.logsumexp - self.entropy * (target_below_reference + self.centre), self.entropy

    def target_entry(self, statistics: RowStatistics) -> Tensor:
        """(R,), ahead of the soft-cap's slope. statistics: over all shards."""
        own = statistics.target_below_reference().exp() * (-self.entropy * self.centre - self.logsumexp)
        return own - self.logprob * statistics.sum_of_others

    def rows(self, rows: slice) -> "Tilt":
        return Tilt(*(values[rows] for values in self))


def tilt_of(
    logprob: Tensor,
    entropy: Tensor,
    *,
    upstream_logprob: Tensor | None,
    upstream_entropy: Tensor | None,
    upstream_logsumexp: Tensor | None,
) -> Tilt:
    """From log-probs and entropies (N,) of the forward pass; upstream gradients (N,), None for 0."""
    upstream = (upstream_logprob, upstream_entropy, upstream_logsumexp)
    known = (torch.zeros_like(logprob) if values is None else values.to(logprob.dtype) for values in upstream)
    return Tilt(*known, centre=-(logprob + entropy))
