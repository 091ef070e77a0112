"""What a rollout takes and returns: prompts, trajectories and groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

FinishReason = Literal["stop", "length"]
FIRST_WORDS = 60  # characters of a prompt in a message


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    ids: never empty. text: what the tokens spell. record: the source record, for reports, format checks
    and rewards. source: file and line, or data set and row, for error messages.
    """

    ids: Int64[np.ndarray, " P"]
    text: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def name_of(prompt: Prompt, number: int) -> str:
    """Name a prompt in a message: where it stands, otherwise its number, and its first words.

    >>> name_of(Prompt(np.array([5]), "What is\\n2 + 2?", source="sums.jsonl:17"), 1)
    'sums.jsonl:17 ("What is 2 + 2?")'
    """
    place, words = prompt.source or f"prompt {number}", " ".join(prompt.text.split())
    if len(words) > FIRST_WORDS:
        words = f"{words[:FIRST_WORDS].rstrip()}..."
    return f'{place} ("{words}")' if words else place


@dataclass(frozen=True)
class Trajectory:
    """One response to a prompt.

    response_ids: the end-of-sequence token included when it was sampled. behaviour_logprobs: log-probability of each
    token under the distribution it was drawn from, nats. finish_reason: "stop" (end of sequence, or a stop text) or
    "length" (cut at the limit). seed: the request's seed. weight_version: optimiser updates that the sampler's weights
    had seen. sampler_logprobs: the sampler's own, where behaviour_logprobs were recomputed since.
    """

    response_ids: Int64[np.ndarray, " R"]
    behaviour_logprobs: Float32[np.ndarray, " R"]
    finish_reason: FinishReason
    seed: int = 0
    weight_version: int = 0
    sampler_logprobs: Float32[np.ndarray, " R"] | None = None

    @property
    def own_logprobs(self) -> Float32[np.ndarray, " R"]:
        """Those of the distribution that the tokens were drawn from, whether or not others were computed since."""
        return self.behaviour_logprobs if self.sampler_logprobs is None else self.sampler_logprobs

    def __len__(self) -> int:
        """Count the response tokens, |y|."""
        return len(self.response_ids)


@dataclass(frozen=True)
class Group:
    """The trajectories sampled for one prompt."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]


def flatten(groups: Sequence[Group]) -> list[Trajectory]:
    """Return all trajectories, group by group. Every tensor of an update with a value per trajectory has this order."""
    return [trajectory for group in groups for trajectory in group.trajectories]


def only(groups: Sequence[Group], wanted: Sequence[bool]) -> list[Group]:
    """Remove the trajectories that are not wanted, in flat order, and groups of which none is left."""
    flags = iter(wanted)
    kept = [
        replace(group, trajectories=tuple(entry for entry in group.trajectories if next(flags))) for group in groups
    ]
    return [group for group in kept if group.trajectories]


def shares_of(groups: Sequence[Group], count: int, teaches: Callable[[Group], bool]) -> list[list[Group]]:
    """Split groups into at most `count` runs of consecutive ones, with numbers of those that teach that differ by at
    most one, and at least 1 where any does. The others come with the next one that does, or with the last.
    """
    chosen = [place for place, group in enumerate(groups) if teaches(group)] or [*range(len(groups))]
    firsts = [len(chosen) * share // count for share in range(1, count)]
    bounds = [0, *(chosen[first - 1] + 1 for first in firsts if first), len(groups)]
    runs = [list(groups[start:end]) for start, end in itertools.pairwise(bounds)]
    return [run for run in runs if run]
