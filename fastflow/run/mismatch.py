"""Compare the sampler's log-probs with the trainer's, for the same tokens and the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mismatch(NamedTuple):
    """Over the tokens of a step, in nats: mean, 99th percentile and maximum of the absolute difference, and the KL.

    kl: estimate of KL(sampler || trainer) per token, mean of exp(d) - 1 - d with d = trainer - sampler. It is unbiased,
    since the sampler drew the tokens, and never negative.
    """

    mean: float
    p99: float
    max: float
    kl: float


def mismatch(sampler: Sequence[np.ndarray], trainer: Sequence[np.ndarray]) -> Mismatch:
    """Compare log-probs. sampler, trainer: one (|y|,) array for each response, in the same order, in nats.

    >>> half = mismatch([np.array([-1.0, -2.0])], [np.array([-1.0, -2.5])])
    >>> (half.mean, half.max, round(half.kl, 4))
    (0.25, 0.5, 0.0533)
    """
    difference = np.concatenate(trainer).astype(np.float64) - np.concatenate(sampler)
    size = np.abs(difference)
    return Mismatch(
        mean=float(size.mean()),
        p99=float(np.percentile(size, 99)),
        max=float(size.max()),
        kl=float((np.expm1(difference) - difference).mean()),
    )
