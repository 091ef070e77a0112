"""The formulas of a row's moments and of its tilted direction, apart from the sweeps of an implementation."""

from __future__ import annotations

import math

import torch

from fastflow_kernels import linear_logprob, row_sweeps
from fastflow_kernels.moments import Moments
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.tilt import Tilt
from head_calls import HEAD
from kernel_problems import head_tensors


def test_moments_of_columns_measured_apart():
    """As the statistics of two shards are merged, one of which has nothing but -inf."""
    logits = torch.tensor([[1.0, 4.0, -2.0, 3.0], [0.5, -60.0, -torch.inf, -torch.inf]]).double()
    target_logit = logits[:, 0]

    class Shard:
        """Both halves at once: what one rank would send is added to what the other has."""

        def __init__(self, other: RowStatistics):
            self.other = other

        def gathered(self, values):
            return torch.stack([values, torch.stack([self.other.reference, self.other.sum_of_others])])

        def sum_(self, values):
            reference = torch.maximum(own.reference, self.other.reference)
            ratio = self.other.ratio_to(reference)
            shift = (self.other.reference - reference).clamp(min=-1e300)
            moments = self.other.moments.rebased(self.other.sum_of_others, shift, ratio)
            counts = torch.full_like(ratio, moments.columns)
            return values + torch.stack([moments.weighted, moments.logit_sum, counts])

    own, other = half_of(logits, slice(0, 2), target_logit), half_of(logits, slice(2, 4), target_logit)
    statistics = own.merged(Shard(other)).token_statistics()
    p = logits.softmax(dim=1)
    torch.testing.assert_close(statistics.entropy, torch.special.entr(p).sum(dim=1))
    torch.testing.assert_close(statistics.logsumexp, logits.logsumexp(dim=1))
    torch.testing.assert_close(statistics.mean_logit, logits.mean(dim=1))


def half_of(logits: torch.Tensor, part: slice, target_logit: torch.Tensor) -> RowStatistics:
    """Of some columns, by row_sweeps.py; the target is column 0."""
    panel = logits[:, part].clone()
    reference = panel.amax(dim=1)
    columns = torch.full((2,), -part.start)
    options = {"softcap": None, "scale": 1.0, "reference": reference.clamp(min=-1e300), "columns": columns}
    others, _, *sums = row_sweeps.row_exponentials_(panel, None, **options, store=False, with_moments=True)
    return RowStatistics(target_logit, reference, others, moments=Moments(*sums, 2))


def test_a_tilt_without_statistics_is_the_plain_direction():
    """Upstream gradients of the log-probs alone, whichever way they go."""
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2, with_bias=True)
    head = [tensors[name] for name in HEAD]
    outcomes = []
    for extra in (None, torch.zeros(9).double()):
        leaves = [tensor.clone().requires_grad_() for tensor in head]
        logprob, statistics = linear_logprob(*leaves[:2], tensors["targets"], bias=leaves[2], statistics=True)
        loss = logprob @ torch.linspace(-1, 1, 9).double()
        (loss if extra is None else loss + statistics.entropy @ extra).backward()
        outcomes.append([leaf.grad for leaf in leaves])
    for plain, tilted in zip(*outcomes, strict=True):
        torch.testing.assert_close(plain, tilted, rtol=1e-12, atol=1e-14)


def test_a_tilt_knows_the_sum_for_any_reference():
    logits = torch.tensor([[1.0, 4.0, -2.0, 3.0]]).double()
    every_logprob = logits.log_softmax(dim=1)
    entropy = -(every_logprob.exp() * every_logprob).sum(dim=1)
    zero = torch.zeros(1).double()
    tilt = Tilt(zero, zero + 1, zero, every_logprob[:, 2], entropy, logits.logsumexp(dim=1))
    statistics = tilt.statistics(logits[:, 2], scale=1.0)
    moved = statistics._replace(reference=statistics.reference + 0.5)
    moved = moved._replace(sum_of_others=statistics.sum_of_others * math.exp(-0.5))
    for found in (statistics, moved):
        exponents = logits - found.reference
        constant, slope = tilt.affine(found)
        direction = exponents.exp() * (constant + slope * exponents)
        direction[:, 2] = tilt.target_entry(found)
        torch.testing.assert_close(direction * found.factor(), -every_logprob.exp() * (every_logprob + entropy))
