"""Recorded responses in the place of a sampler: each step learns from what stands in a file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Group
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import OnProgress, Request, SamplingParams, unheard


class RecordedResponses:
    """Answers each request with recorded responses of its prompt. It has no weights, and starts no engine.

    seed: of the order in which the responses to each prompt are taken. on_progress: told of responses that were taken.
    """

    def __init__(self, seed: int, on_progress: OnProgress = unheard):
        self._seed, self._on_progress = seed, on_progress

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return a group per request, chosen by its turn and seeds alone. Raises FastflowError for a prompt without
        responses.

        What `params` says is settled: the responses are as they were recorded.
        """
        groups = [self._group(request) for request in requests]
        self._on_progress(sum(len(group.trajectories) for group in groups))
        return groups

    def load_weights(self, policy: PackedModel) -> None:
        """Need none."""

    def close(self) -> None:
        """Hold nothing."""

    def _group(self, request: Request) -> Group:
        prompt = request.prompt
        if not isinstance(prompt, RecordedPrompt):
            raise FastflowError(
                f"{prompt.source or 'a prompt'} has no recorded responses, and objective.name = distil samples none; "
                "ask the trained policy with fastflow evaluate"
            )
        taken = [replace(prompt.responses[at], seed=seed) for at, seed in self._places(prompt, request)]
        return Group(prompt, tuple(taken))

    def _places(self, prompt: RecordedPrompt, request: Request) -> Iterator[tuple[int, int]]:
        """The responses of this turn, by their places, each with the seed that it is recorded under."""
        count = len(request.seeds)
        if len(set(prompt.weights)) == 1:
            order = [self._seed, zlib.crc32(prompt.ids.tobytes())]  # another for each prompt, as files may be sorted
            places = next_round(len(prompt.weights), count, request.turn, order)
        else:
            places = drawn(prompt.weights, count, request.seeds[0])
        return zip(places, request.seeds, strict=True)


def next_round(among: int, count: int, turn: int, seed: int | Sequence[int]) -> list[int]:
    """Choose `count` places of `among`: those of this turn, where each turn goes on behind the one before.

    The order is one and the same round after round. No place is taken once more before every other one was, neither
    within a turn nor over several.

    >>> sorted(next_round(4, 2, 0, seed=0) + next_round(4, 2, 1, seed=0))
    [0, 1, 2, 3]
    """
    order = np.random.default_rng(seed).permutation(among)
    return order[np.arange(turn * count, (turn + 1) * count) % among].tolist()


def drawn(weights: Sequence[float], count: int, seed: int) -> list[int]:
    """Draw `count` places, each in proportion to its weight, whatever was drawn before."""
    shares = np.array(weights, dtype=np.float64)
    return np.random.default_rng(seed).choice(len(shares), count, p=shares / shares.sum()).tolist()
