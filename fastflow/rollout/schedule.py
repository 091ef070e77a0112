"""When responses are sampled: from the weights of the moment, or one step ahead while the policy trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fastflow.data.trajectory import Group
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import OverlappingSampler, Request, Sampler, SamplingParams


class Schedule(Protocol):
    """Where a step's groups come from."""

    def groups(self, step: int) -> list[Group]:
        """The groups of this step; steps are asked for in order, from 1."""


class OnPolicy:
    """Samples each step from the weights of that moment. requests: step -> its requests, asked once and in order."""

    def __init__(
        self,
        sampler: Sampler,
        policy: PackedModel,
        requests: Callable[[int], Sequence[Request]],
        params: SamplingParams,
    ):
        self._sampler, self._policy = sampler, policy
        self._requests, self._params = requests, params
        self._loaded = policy.version

    def groups(self, step: int) -> list[Group]:
        if self._loaded != self._policy.version:
            self._sampler.load_weights(self._policy)
            self._loaded = self._policy.version
        return self._sampler.sample(self._requests(step), self._params)


class OneAhead:
    """Has the next step sampled while this one trains, from the weights before this one's updates.

    steps: how many there are, so that nothing is sampled for a step that never comes.
    """

    def __init__(
        self,
        sampler: OverlappingSampler,
        policy: PackedModel,
        requests: Callable[[int], Sequence[Request]],
        params: SamplingParams,
        *,
        steps: int,
    ):
        self._sampler, self._policy = sampler, policy
        self._requests, self._params = requests, params
        self._steps = steps

    def groups(self, step: int) -> list[Group]:
        if step == 1:
            self._begin(step)
        groups = self._sampler.finish()
        if step < self._steps:
            if step > 1:
                self._sampler.load_weights(self._policy)
            self._begin(step + 1)
        return groups

    def _begin(self, step: int) -> None:
        self._sampler.begin(self._requests(step), self._params)
