"""What the samplers of p^alpha have in common: tails of responses, walks that ask for them, and many walks at once.

A walk is a generator. It yields the tails that it needs next, receives them, and returns its result. Walks advance
together, so that an engine draws the tails of all of them in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from fastflow.data.trajectory import Prompt


def _no_ids() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


def _no_logprobs() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Tail:
    """Tokens that follow a prefix, or a whole response.

    ids: (n,) int64. log_p: (n,) float64, under the model at temperature 1, nats. log_q: (n,) float64, under the
    proposal that drew them, nats. ended: whether the last token ends the response; otherwise it was cut at a limit.
    """

    ids: np.ndarray = field(default_factory=_no_ids)
    log_p: np.ndarray = field(default_factory=_no_logprobs)
    log_q: np.ndarray = field(default_factory=_no_logprobs)
    ended: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, tokens: int) -> Tail:
        """Return its first tokens, which do not end it unless they are all of it."""
        return Tail(self.ids[:tokens], self.log_p[:tokens], self.log_q[:tokens], self.ended and tokens >= len(self))

    def after(self, tokens: int) -> Tail:
        """Return what follows its first tokens."""
        return Tail(self.ids[tokens:], self.log_p[tokens:], self.log_q[tokens:], self.ended)

    def then(self, tail: Tail) -> Tail:
        """Return it with a tail behind it. Raises ValueError where it has ended."""
        if self.ended:
            raise ValueError("a response that has ended cannot go on")
        ids, log_p, log_q = (
            np.concatenate(pair) for pair in ((self.ids, tail.ids), (self.log_p, tail.log_p), (self.log_q, tail.log_q))
        )
        return Tail(ids, log_p, log_q, tail.ended)


@dataclass(frozen=True)
class Ask:
    """Draw a tail of at most `limit` tokens after these response tokens (m,) int64, from this seed."""

    prefix: np.ndarray
    limit: int
    seed: int


@dataclass
class Cost:
    """Tokens spent on one result.

    sampled: drawn from the proposal, kept or not. read: run through the model besides, that is the prompts and prefixes
    that tails follow, and the sequences that are scored; an engine's prefix cache may save some of them.
    """

    sampled: int = 0
    read: int = 0


class Proposer(Protocol):
    """Draws tails from a proposal that goes token by token, and knows their probabilities under the model."""

    def propose(self, asks: Sequence[tuple[Prompt, Ask]]) -> list[tuple[Tail, int]]:
        """Return the tail of each ask, in order, with the tokens that were read for it (see Cost)."""


Result = TypeVar("Result")
Walk = Generator[list[Ask], list[Tail], Result]


def run_walks(
    walks: Sequence[tuple[Prompt, Walk[Result]]],
    proposer: Proposer,
    on_finished: Callable[[int], None] = lambda finished: None,
) -> list[tuple[Result, Cost]]:
    """Run walks to their ends, and return their results with what each cost. on_finished: told how many ended."""
    costs = [Cost() for _ in walks]
    results: dict[int, Result] = {}
    waiting: dict[int, list[Ask]] = {}

    def advance(number: int, tails: list[Tail] | None) -> None:
        walk = walks[number][1]
        try:
            waiting[number] = next(walk) if tails is None else walk.send(tails)
        except StopIteration as end:
            results[number] = end.value
            on_finished(1)

    for number in range(len(walks)):
        advance(number, None)
    while waiting:
        asks = [(walks[number][0], ask) for number, wanted in waiting.items() for ask in wanted]
        answers = iter(proposer.propose(asks))
        round_, waiting = waiting, {}
        for number, wanted in round_.items():
            tails = []
            for _ in wanted:
                tail, read = next(answers)
                costs[number].sampled += len(tail)
                costs[number].read += read
                tails.append(tail)
            advance(number, tails)
    return [(results[number], costs[number]) for number in range(len(walks))]


def seed_of(rng: np.random.Generator) -> int:
    """Draw a seed for an engine: an integer from 0 to below 2^63."""
    return int(rng.integers(2**63))
