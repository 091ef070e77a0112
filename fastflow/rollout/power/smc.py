"""Sequential Monte Carlo for p^alpha (Power-SMC, arXiv 2602.10273).

A population of particles grows token by token from the proposal q at temperature 1 / alpha. Each token multiplies its
particle's weight by p(token)^alpha / q(token). A particle that has ended keeps its weight. Where the effective sample
size falls below a share of the population, particles are drawn anew in proportion to their weights, which then are
equal; that happens between blocks only. At the end the weighted population stands for p^alpha: a response drawn from it
by weight has that distribution in the limit of many particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastflow.rollout.power.walk import Ask, Tail, Walk, seed_of

RESAMPLE_BELOW = 0.5  # effective sample size, as a share of the population
_STREAM = 2  # of random numbers beside the engine's


@dataclass(frozen=True)
class Population:
    """Weighted responses. weights: (n,) float64, they sum to one. chosen: the response drawn by weight.

    resampled: how often the particles were drawn anew.
    """

    responses: tuple[Tail, ...]
    weights: np.ndarray
    chosen: int
    resampled: int

    @property
    def response(self) -> Tail:
        """The response drawn by weight."""
        return self.responses[self.chosen]


def log_increment(tail: Tail, alpha: float) -> float:
    """Compute what a tail adds to the logarithm of its particle's weight: alpha log p - log q, nats."""
    return float(alpha * tail.log_p.sum() - tail.log_q.sum())


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Return weights (n,) that sum to one from their logarithms (n,)."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def effective_size(weights: np.ndarray) -> float:
    """Compute the effective sample size of weights (n,) that sum to one: 1 / sum of squares, from 1 to n."""
    return float(1 / np.square(weights).sum())


def systematic(weights: np.ndarray, uniform: float) -> np.ndarray:
    """Draw n of n particles by weight (n,): those that n evenly spaced points, moved by `uniform`, fall upon.

    Each particle stands there floor(n w) or ceil(n w) times, and n w times on average. uniform: from 0 to below 1.
    """
    points = (np.arange(len(weights)) + uniform) / len(weights)
    return np.minimum(np.searchsorted(weights.cumsum(), points, side="right"), len(weights) - 1)


def population(seed: int, *, alpha: float, limit: int, block: int, particles: int) -> Walk[Population]:
    """Walk one population. limit: the length limit, in tokens. block: tokens between two looks at the weights."""
    rng = np.random.default_rng([seed, _STREAM])
    states = [Tail() for _ in range(particles)]
    log_weights, resampled = np.zeros(particles), 0
    for start in range(0, limit, block):
        growing = [place for place, state in enumerate(states) if not state.ended]
        if not growing:
            break
        if start and effective_size(weights := normalised(log_weights)) < RESAMPLE_BELOW * particles:
            states = [states[place] for place in systematic(weights, rng.random())]
            log_weights, resampled = np.zeros(particles), resampled + 1
            growing = [place for place, state in enumerate(states) if not state.ended]
            if not growing:
                break
        tokens = min(block, limit - start)
        asks = [Ask(states[place].ids, tokens, seed_of(rng)) for place in growing]
        for place, tail in zip(growing, (yield asks), strict=True):
            states[place] = states[place].then(tail)
            log_weights[place] += log_increment(tail, alpha)
    weights = normalised(log_weights)
    return Population(tuple(states), weights, int(rng.choice(particles, p=weights)), resampled)
