"""The seam between the trainer and whatever samples: requests in, groups out, weights loaded in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastflow.data.trajectory import Group, Prompt
from fastflow.models.packed import PackedModel


@dataclass(frozen=True)
class Request:
    """One prompt and the seeds of its responses, one seed a response."""

    prompt: Prompt
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn.

    temperature: divides the logits; 0 is greedy, with behaviour log-probs of 0. top_p: nucleus mass in (0, 1].
    max_response_tokens: the length limit, end-of-sequence token included. min_response_tokens: no end-of-sequence
    token is drawn before so many others. stop: texts that end a response, as response_text spells it; the token that
    completes one is its last.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_response_tokens: int = 1024
    min_response_tokens: int = 0
    stop: tuple[str, ...] = ()


class Sampler(Protocol):
    """Anything that samples groups of responses from the current policy."""

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """One group per request, in order. A response depends on its seed, prompt and weights alone."""

    def load_weights(self, policy: PackedModel) -> None:
        """Sample from these weights from now on; trajectories carry `policy.version` of this moment."""

    def close(self) -> None:
        """Release everything; the sampler is not used afterwards."""


class OverlappingSampler(Sampler, Protocol):
    """A sampler with weights of its own, which can sample while the policy trains."""

    def begin(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Start sampling and return at once. Until `finish`, nothing else is asked of the sampler."""

    def finish(self) -> list[Group]:
        """What `sample` would have returned for the requests of `begin`."""


def requests_for(prompts: Sequence[Prompt], responses_per_prompt: int, *, seed: int, step: int) -> list[Request]:
    """Requests whose seeds are distinct across the whole run and depend on (seed, step, place) alone."""
    count = len(prompts) * responses_per_prompt
    seeds = np.random.SeedSequence([seed, step]).generate_state(count, np.uint64) >> np.uint64(1)  # fits int64
    rows = seeds.reshape(len(prompts), responses_per_prompt).tolist()
    return [Request(prompt, tuple(row)) for prompt, row in zip(prompts, rows, strict=True)]
