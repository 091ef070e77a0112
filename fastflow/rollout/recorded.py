"""Recorded responses in the place of a sampler: each step learns from what stands in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Group
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import OnProgress, Request, SamplingParams, unheard


class RecordedResponses:
    """Answers each request with recorded responses of its prompt. It has no weights, and starts no engine.

    on_progress: told of responses that were taken.
    """

    def __init__(self, on_progress: OnProgress = unheard):
        self._on_progress = on_progress

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return a group per request, chosen by its seeds alone. Raises FastflowError for a prompt without responses.

        What `params` says is settled: the responses are as they were recorded.
        """
        groups = [_group(request) for request in requests]
        self._on_progress(sum(len(group.trajectories) for group in groups))
        return groups

    def load_weights(self, policy: PackedModel) -> None:
        """Need none."""

    def close(self) -> None:
        """Hold nothing."""


def choose(weights: Sequence[float], count: int, seed: int) -> list[int]:
    """Choose `count` of the recorded responses of a prompt, by their places.

    Where all weigh the same, no response is taken once more before every other one was. Otherwise each is drawn in
    proportion to its weight, whatever was drawn before.

    >>> sorted(choose([1.0, 1.0, 1.0], 3, seed=0))
    [0, 1, 2]
    """
    generator, shares = np.random.default_rng(seed), np.array(weights, dtype=np.float64)
    if (shares == shares[0]).all():
        rounds = [generator.permutation(len(shares)) for _ in range(-(-count // len(shares)))]
        return np.concatenate(rounds)[:count].tolist()
    return generator.choice(len(shares), count, p=shares / shares.sum()).tolist()


def _group(request: Request) -> Group:
    prompt = request.prompt
    if not isinstance(prompt, RecordedPrompt):
        raise FastflowError(
            f"{prompt.source or 'a prompt'} has no recorded responses, and objective.name = distil samples none; ask "
            "the trained policy with fastflow evaluate"
        )
    places = choose(prompt.weights, len(request.seeds), request.seeds[0])
    taken = [replace(prompt.responses[at], seed=seed) for at, seed in zip(places, request.seeds, strict=True)]
    return Group(prompt, tuple(taken))
