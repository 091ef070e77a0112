"""From a block of logits to log-probs and the direction of their gradient, in place and without cancellation.

Per row, with logits z, target t, m = max z and e_v = exp(z_v - m), so that e is 1 at the largest logit:

    S_o = sum of e over the entries other than the target       a sum of non-negative terms: no cancellation
    S   = S_o + e_t
    log p_t = (z_t - m) - log S = (z_t - m) - log1p(S_o + (e_t - 1))

Where the target is the largest logit, z_t = m and e_t = 1 exactly, and this is -log1p(S_o): a probability
that differs from one by 1e-30 still has the log-prob -1e-30. Elsewhere S_o >= 1, and the rounding of e_t - 1
is below that of the sum.

    d log p_t / d z = onehot(t) - softmax(z) = -(1 / S) * [e, with -S_o in place of the target's entry]

since 1 - p_t = S_o / S. The bracket overwrites the logits; the factor 1/S, and whatever coefficient the row
has in the loss, is one number per row, which the callers fold into the (R, D) factors next to the block
instead of spending a pass over (R, V).
"""

import torch
from torch import Tensor


def row_pass_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets; `logits` becomes their gradient up to one factor per row.

    logits: (R, V) float32 or float64, overwritten. targets: (R,) int64 in [0, V).
    Returns logprob (R,) and row_factor (R,): d logprob_r / d logits_r = row_factor_r * logits_r, as it is
    after the call.
    """
    target_column = targets.unsqueeze(1)
    logits.sub_(logits.amax(dim=1, keepdim=True))
    target_logit = logits.gather(1, target_column)
    logits.exp_()
    logits.scatter_(1, target_column, 0.0)
    sum_of_others = logits.sum(dim=1, keepdim=True)
    logits.scatter_(1, target_column, -sum_of_others)

    target_exp = target_logit.exp()
    logprob = target_logit - torch.log1p(sum_of_others + (target_exp - 1.0))
    row_factor = -1.0 / (sum_of_others + target_exp)
    return logprob.squeeze(1), row_factor.squeeze(1)
