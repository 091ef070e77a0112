"""Metropolis-Hastings chains for p^alpha over whole responses (Reasoning with Sampling, arXiv 2510.14901).

The proposal q draws token by token at temperature 1 / alpha. A response grows in blocks. After each block the chain
makes some moves: it picks a position of the response uniformly, draws a new tail from there, and takes it or not.

`exact` is a chain whose stationary distribution is p^alpha on the responses of the length limit, where a response that
was cut at the limit is an outcome like any other. A new tail may reach the limit of the block, whatever the length of
the present one. The position is one of |x|, and one of |x'| on the way back, so that the ratio contains |x| / |x'|. A
response that ends before the last block goes on at once with moves under the full length limit: the moves before only
choose where the chain starts.

`published` follows the published code. It leaves |x| / |x'| out, cuts a new tail at the present length, compares it
with as many tokens of the present tail alone, and stops at the first block after which the response has ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastflow.rollout.power.walk import Ask, Tail, Walk, seed_of

Form = Literal["exact", "published"]
_STREAM = 1  # of random numbers beside the engine's


@dataclass(frozen=True)
class Chain:
    """The end of a chain. response: its last state. moves, accepted: how many were proposed, and how many taken."""

    response: Tail
    moves: int
    accepted: int


def log_acceptance(current: Tail, proposed: Tail, *, kept: int, alpha: float, form: Form) -> float:
    """Compute the logarithm of the acceptance ratio of a move, nats; a move is taken with probability min(1, ratio).

    current, proposed: the tails after the `kept` tokens that both responses share.
    """
    if form == "published":
        current = current.first(len(proposed))
    target = alpha * (proposed.log_p.sum() - current.log_p.sum())
    ratio = target + current.log_q.sum() - proposed.log_q.sum()
    if form == "exact":
        ratio += math.log(kept + len(current)) - math.log(kept + len(proposed))
    return float(ratio)


def chain(seed: int, *, alpha: float, limit: int, block: int, steps: int, form: Form) -> Walk[Chain]:
    """Walk one chain. limit: the length limit, in tokens. block: tokens of a block. steps: moves after each block."""
    rng = np.random.default_rng([seed, _STREAM])
    state, moves, accepted, room = Tail(), 0, 0, 0
    while not state.ended and room < limit:
        room = min(room + block, limit)
        grown = room if form == "exact" else min(len(state) + block, limit)
        (tail,) = yield [Ask(state.ids, grown - len(state), seed_of(rng))]
        state = state.then(tail)
        for _ in range(steps):
            state, taken = yield from _move(state, rng, alpha=alpha, room=room, form=form)
            moves, accepted = moves + 1, accepted + taken
    if form == "exact" and room < limit:
        for _ in range(steps):
            state, taken = yield from _move(state, rng, alpha=alpha, room=limit, form=form)
            moves, accepted = moves + 1, accepted + taken
    return Chain(state, moves, accepted)


def _move(state: Tail, rng: np.random.Generator, *, alpha: float, room: int, form: Form) -> Walk[tuple[Tail, bool]]:
    """Propose a new tail from a position drawn uniformly. Returns the next state, and whether it is the new one."""
    kept = int(rng.integers(len(state)))
    longest = room if form == "exact" else len(state)
    prefix = state.first(kept)
    (tail,) = yield [Ask(prefix.ids, longest - kept, seed_of(rng))]
    ratio = log_acceptance(state.after(kept), tail, kept=kept, alpha=alpha, form=form)
    if math.log(1 - rng.random()) <= ratio:
        return prefix.then(tail), True
    return state, False
