"""Samplers of p^alpha over any engine: one chain, or one population, for each response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastflow.data.trajectory import Group, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.power.mcmc import Chain, Form, chain
from fastflow.rollout.power.proposal import EngineProposer
from fastflow.rollout.power.smc import Population, population
from fastflow.rollout.power.walk import Cost, Tail, Walk, run_walks
from fastflow.rollout.sampler import OnProgress, Request, Sampler, SamplingParams, unheard

Ended = Chain | Population
WalkOf = Callable[[int, int], Walk[Ended]]  # (seed, length limit) -> a walk


@dataclass(frozen=True)
class PowerDraw:
    """A response, and what it cost. trajectory: its behaviour_logprobs are those of the model at temperature 1."""

    trajectory: Trajectory
    cost: Cost


class PowerSampler:
    """Samples whole responses from p^alpha of the policy. A response depends on its seed, prompt and weights alone.

    sampler: the engine that draws tails. walk: makes the chain or population of a response; see `mcmc` and `smc`.
    on_progress: receives the number of responses that finished since the last call.
    """

    def __init__(
        self,
        sampler: Sampler,
        policy: PackedModel,
        *,
        alpha: float,
        walk: WalkOf,
        on_progress: OnProgress = unheard,
    ):
        self._sampler, self._policy, self._alpha, self._walk = sampler, policy, alpha, walk
        self._on_progress = on_progress

    @classmethod
    def mcmc(
        cls,
        sampler: Sampler,
        policy: PackedModel,
        *,
        alpha: float,
        block: int,
        steps: int,
        form: Form = "exact",
        on_progress: OnProgress = unheard,
    ) -> PowerSampler:
        """Return a sampler by Metropolis-Hastings. block: tokens. steps: moves after each block. See mcmc.py."""

        def walk(seed: int, limit: int) -> Walk[Ended]:
            return chain(seed, alpha=alpha, limit=limit, block=block, steps=steps, form=form)

        return cls(sampler, policy, alpha=alpha, walk=walk, on_progress=on_progress)

    @classmethod
    def smc(
        cls,
        sampler: Sampler,
        policy: PackedModel,
        *,
        alpha: float,
        block: int,
        particles: int,
        on_progress: OnProgress = unheard,
    ) -> PowerSampler:
        """Return a sampler by sequential Monte Carlo. block: tokens between two looks at the weights. See smc.py."""

        def walk(seed: int, limit: int) -> Walk[Ended]:
            return population(seed, alpha=alpha, limit=limit, block=block, particles=particles)

        return cls(sampler, policy, alpha=alpha, walk=walk, on_progress=on_progress)

    def load_weights(self, policy: PackedModel) -> None:
        """Have the engine sample from these weights, and score under them."""
        self._sampler.load_weights(policy)
        self._policy = policy

    def close(self) -> None:
        """Close the engine."""
        self._sampler.close()

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request, as any sampler does."""
        drawn = self.draw(requests, params)
        return [
            Group(request.prompt, tuple(entry.trajectory for entry in entries))
            for request, entries in zip(requests, drawn, strict=True)
        ]

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[list[PowerDraw]]:
        """Return the responses of each request with their costs.

        Raises FastflowError for parameters that the target does not have: another temperature, a nucleus, a least
        length, stop texts.
        """
        results = self.walk(requests, params)
        return [
            [
                PowerDraw(self._trajectory(result.response, seed), cost)
                for seed, (result, cost) in zip(request.seeds, of_request, strict=True)
            ]
            for request, of_request in zip(requests, results, strict=True)
        ]

    def walk(self, requests: Sequence[Request], params: SamplingParams) -> list[list[tuple[Ended, Cost]]]:
        """Return the ended chain or population of each response, and what it cost. Raises as `draw`."""
        _check(params)
        walks = [
            (request.prompt, self._walk(seed, request.length_limit(params)))
            for request in requests
            for seed in request.seeds
        ]
        proposer = EngineProposer(self._sampler, self._policy, alpha=self._alpha)
        results = iter(run_walks(walks, proposer, self._on_progress))
        return [[next(results) for _ in request.seeds] for request in requests]

    def _trajectory(self, response: Tail, seed: int) -> Trajectory:
        return Trajectory(
            response_ids=response.ids,
            behaviour_logprobs=response.log_p.astype(np.float32),
            finish_reason="stop" if response.ended else "length",
            seed=seed,
            weight_version=self._policy.version,
        )


def _check(params: SamplingParams) -> None:
    for name in (*params.drawn_otherwise, *(["stop"] if params.stop else [])):
        raise FastflowError(
            f"{name} is {getattr(params, name)!r}, but p^alpha is a power of the model's own distribution over "
            f"whole responses, which has no {name}; leave it at its default, or choose another method"
        )
