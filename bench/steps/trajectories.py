"""Random prompts and responses of uneven length, as a rollout leaves them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastflow.data.packing import input_length
from fastflow.data.trajectory import Group, Prompt, Trajectory

SIGMA = (
    0.8  # of the logarithm of the response length: the deviation is nearly the mean, the longest of 32 is 3 to 4 means
)


@dataclass(frozen=True)
class Lengths:
    """How many trajectories there are and how long, in tokens."""

    prompts: int
    responses_per_prompt: int
    longest_prompt: int
    mean_response: int
    longest_response: int


def draw_groups(lengths: Lengths, vocabulary: int, token_logprob: float, seed: int = 0) -> list[Group]:
    """Prompts of uniform and responses of log-normal length, cut at the longest; the tokens are random.

    token_logprob: what the policy gives a random token on average. As the behaviour's log-prob it leaves importance
    weights near one.
    """
    generator = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return generator.integers(0, vocabulary, count, dtype=np.int64)

    def response() -> Trajectory:
        drawn = lengths.mean_response * math.exp(SIGMA * generator.standard_normal() - SIGMA**2 / 2)
        count = min(max(round(drawn), 1), lengths.longest_response)
        finish = "length" if count == lengths.longest_response else "stop"
        return Trajectory(tokens(count), np.full(count, token_logprob, dtype=np.float32), finish)

    def prompt() -> Prompt:
        return Prompt(tokens(int(generator.integers(max(1, lengths.longest_prompt // 4), lengths.longest_prompt + 1))))

    return [
        Group(prompt(), tuple(response() for _ in range(lengths.responses_per_prompt))) for _ in range(lengths.prompts)
    ]


def sequence_lengths(groups: Sequence[Group]) -> list[int]:
    """Input tokens of every sequence, in flat order."""
    return [input_length(group.prompt, entry) for group in groups for entry in group.trajectories]


def response_lengths(groups: Sequence[Group]) -> list[int]:
    return [len(entry) for group in groups for entry in group.trajectories]
