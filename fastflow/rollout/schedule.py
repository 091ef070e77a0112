"""When responses are sampled: from the weights of the moment, or one step ahead while the policy trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from fastflow.config.schema import RolloutConfig
from fastflow.data.trajectory import Group
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import OverlappingSampler, Request, Sampler, SamplingParams


class Schedule(Protocol):
    """Where a step's groups come from."""

    def groups(self, step: int) -> list[Group]:
        """The groups of this step; steps are asked for in order, from the first that the run has to do."""

    def ahead(self) -> list[Group] | None:
        """The groups of the step after the last one asked for, where they come from weights that are gone; waits for
        them. None where the next step can be sampled from the weights of now.
        """

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Groups of other requests than a step's, between two steps and from the weights of now. What is sampled ahead
        is waited for, and stays as it is.
        """


class OnPolicy:
    """Samples each step from the weights of that moment. requests: step -> its requests, asked once and in order."""

    def __init__(
        self,
        sampler: Sampler,
        policy: PackedModel,
        requests: Callable[[int], Sequence[Request]],
        params: SamplingParams,
    ):
        self._weights = _CurrentWeights(sampler, policy)
        self._sampler = sampler
        self._requests, self._params = requests, params

    def groups(self, step: int) -> list[Group]:
        self._weights.load()
        return self._sampler.sample(self._requests(step), self._params)

    def ahead(self) -> None:
        return None

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        self._weights.load()
        return self._sampler.sample(requests, params)


class OneAhead:
    """Has the next step sampled while this one trains, from the weights before this one's updates.

    steps: how many there are, so that nothing is sampled for a step that never comes. ready: the groups of the first
    step, where an earlier process has sampled them.
    """

    def __init__(
        self,
        sampler: OverlappingSampler,
        policy: PackedModel,
        requests: Callable[[int], Sequence[Request]],
        params: SamplingParams,
        *,
        steps: int,
        ready: Sequence[Group] | None = None,
    ):
        self._weights = _CurrentWeights(sampler, policy)
        self._sampler = sampler
        self._requests, self._params = requests, params
        self._steps = steps
        self._ready = list(ready) if ready is not None else None
        self._sampling = False

    def groups(self, step: int) -> list[Group]:
        groups = self.ahead()
        if groups is None:
            self._begin(step)
            groups = self._sampler.finish()
        self._ready, self._sampling = None, False
        if step < self._steps:
            self._begin(step + 1)
        return groups

    def ahead(self) -> list[Group] | None:
        if self._ready is None and self._sampling:
            self._ready, self._sampling = self._sampler.finish(), False
        return self._ready

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        self.ahead()
        self._weights.load()
        return self._sampler.sample(requests, params)

    def _begin(self, step: int) -> None:
        self._weights.load()
        self._sampler.begin(self._requests(step), self._params)
        self._sampling = True


class _CurrentWeights:
    """Brings the policy's weights to the sampler where it does not have them. The first time it always does: whatever
    the sampler holds by then may come from before the policy was restored.
    """

    def __init__(self, sampler: Sampler, policy: PackedModel):
        self._sampler, self._policy = sampler, policy
        self._loaded: int | None = None

    def load(self) -> None:
        if self._loaded != self._policy.version:
            self._sampler.load_weights(self._policy)
            self._loaded = self._policy.version


def make_schedule(
    sampler: Sampler,
    policy: PackedModel,
    requests: Callable[[int], Sequence[Request]],
    rollout: RolloutConfig,
    *,
    steps: int,
    ready: Sequence[Group] | None,
) -> Schedule:
    """Make the schedule that the settings name. steps, ready: see OneAhead."""
    params = SamplingParams.of(rollout)
    if not rollout.ahead:
        return OnPolicy(sampler, policy, requests, params)
    overlapping = cast(OverlappingSampler, sampler)  # Config refuses `ahead` for the others
    return OneAhead(overlapping, policy, requests, params, steps=steps, ready=ready)
