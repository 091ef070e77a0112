"""The protocol between trainer and sampler: requests go in, groups come out, weights are loaded in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from fastflow.config.schema import RolloutConfig
from fastflow.data.trajectory import Group, Prompt
from fastflow.models.packed import PackedModel

OnProgress = Callable[[int], None]  # receives the number of responses that finished since the last call


def unheard(finished: int) -> None:
    """The OnProgress of a sampler whose caller does not ask for any."""


@dataclass(frozen=True)
class Request:
    """One prompt and the seeds of its responses, one seed for each.

    limit: the length limit of these responses, where it is lower than that of all, in tokens. turn: how many turns the
    prompt had before, which says where recorded responses go on.
    """

    prompt: Prompt
    seeds: tuple[int, ...]
    limit: int | None = None
    turn: int = 0

    def length_limit(self, params: SamplingParams) -> int:
        """Return the most tokens that each of its responses may have."""
        return params.max_response_tokens if self.limit is None else min(self.limit, params.max_response_tokens)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn.

    temperature: divides the logits; 0 is greedy, with behaviour log-probs of 0. min_p: tokens with less than this share
    of the likeliest one's probability are left out. top_k: so many of the likeliest tokens stay, with those that equal
    the last of them; 0 keeps all. top_p: mass in (0, 1] of the nucleus, the fewest tokens that hold it among what min_p
    and top_k leave. max_response_tokens: the length limit, end-of-sequence token included. min_response_tokens: tokens
    that come before the first end-of-sequence token may be drawn. stop: texts that end a response, as response_text
    spells it; the token that completes one is the last of the response.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_response_tokens: int = 1024
    min_response_tokens: int = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, rollout: RolloutConfig, **instead: Any) -> SamplingParams:
        """Those that the settings name. instead: fields with values of their own."""
        of_settings = {entry.name: getattr(rollout, entry.name) for entry in fields(cls)}
        return cls(**{**of_settings, **instead})

    @property
    def drawn_otherwise(self) -> tuple[str, ...]:
        """Name the fields by which tokens come from another distribution than the model's own."""
        own = SamplingParams()
        changing = ("temperature", "top_p", "top_k", "min_p", "min_response_tokens")
        return tuple(name for name in changing if getattr(self, name) != getattr(own, name))


class Sampler(Protocol):
    """Samples groups of responses from the current policy."""

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request, in order. A response depends on its seed, prompt and weights alone."""

    def load_weights(self, policy: PackedModel) -> None:
        """Sample from these weights from now on; new trajectories carry the present `policy.version`."""

    def close(self) -> None:
        """Release everything. Nobody uses the sampler afterwards."""


class OverlappingSampler(Sampler, Protocol):
    """Samples from its own copy of the weights, so that it can work while the policy trains."""

    def begin(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Start sampling and return at once. The next call is `finish`."""

    def finish(self) -> list[Group]:
        """Wait, and return what `sample` returns for the requests of `begin`."""


def requests_for(
    prompts: Sequence[Prompt], responses_per_prompt: int, *, seed: int, step: int, turns: Sequence[int] | None = None
) -> list[Request]:
    """Return requests whose seeds are distinct across the run and depend on (seed, step, place) alone.

    turns: how many turns each prompt had before; none without it.
    """
    count = len(prompts) * responses_per_prompt
    seeds = np.random.SeedSequence([seed, step]).generate_state(count, np.uint64) >> np.uint64(1)  # fits int64
    rows = seeds.reshape(len(prompts), responses_per_prompt).tolist()
    before = [0] * len(prompts) if turns is None else turns
    entries = zip(prompts, rows, before, strict=True)
    return [Request(prompt, tuple(row), turn=turn) for prompt, row, turn in entries]
