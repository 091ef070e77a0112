"""Methods that hand on what a sampler draws: plain sampling, beam search, and the samplers of p^alpha."""

from __future__ import annotations

from collections.abc import Sequence

from fastflow.data.response_text import ResponseText
from fastflow.evaluate.methods.answer import Answer, Entry, Method, answer_of
from fastflow.evaluate.task import Task
from fastflow.rollout.beam import BeamSearch
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.sampler import OnProgress, Request, Sampler, SamplingParams


def plain_sampling(sampler: Sampler, text: ResponseText, params: SamplingParams) -> Method:
    """Make a method whose answers are single samples. low_temperature is the same with other parameters."""

    def answers(task: Task, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        groups = sampler.sample(requests, params)
        return [[answer_of(one, text, sampled=len(one)) for one in group.trajectories] for group in groups]

    return answers


def power_sampling(sampler: PowerSampler, text: ResponseText, params: SamplingParams) -> Method:
    """Make a method whose answers are the ends of chains, or single responses of weighted populations.

    An answer costs the whole of its chain or population.
    """

    def answers(task: Task, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        return [
            [
                answer_of(drawn.trajectory, text, sampled=drawn.cost.sampled, read=drawn.cost.read)
                for drawn in of_request
            ]
            for of_request in sampler.draw(requests, params)
        ]

    return answers


def beam_search(search: BeamSearch, text: ResponseText, params: SamplingParams, on_progress: OnProgress) -> Method:
    """Make a method whose only answer to a prompt is the best response that the search finds."""

    def answers(task: Task, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        found = []
        for request in requests:
            beam = search.search(request, params)
            found.append([answer_of(beam.trajectories[0], text, sampled=beam.sampled_tokens)])
            on_progress(1)
        return found

    return answers
