"""Methods that hand on what a sampler draws: plain sampling, beam search, and the samplers of p^alpha."""

from __future__ import annotations

from collections.abc import Sequence

from fastflow.data.response_text import ResponseText
from fastflow.evaluate.methods.answer import Answer, Entry, answer_of
from fastflow.rollout.beam import BeamSearch
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.sampler import OnProgress, Request, Sampler, SamplingParams


class PlainSampling:
    """Each answer is one sample. low_temperature is the same with other parameters."""

    def __init__(self, sampler: Sampler, text: ResponseText, params: SamplingParams):
        self._sampler, self._text, self._params = sampler, text, params

    def answers(self, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        """Return the samples as they are."""
        groups = self._sampler.sample(requests, self._params)
        return [[answer_of(entry, self._text, sampled=len(entry)) for entry in group.trajectories] for group in groups]


class PowerSampling:
    """Each answer is the end of one chain, or one response of a weighted population of its own."""

    def __init__(self, sampler: PowerSampler, text: ResponseText, params: SamplingParams):
        self._sampler, self._text, self._params = sampler, text, params

    def answers(self, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        """Return the responses with the tokens of the whole chain or population."""
        return [
            [
                answer_of(drawn.trajectory, self._text, sampled=drawn.cost.sampled, read=drawn.cost.read)
                for drawn in of_request
            ]
            for of_request in self._sampler.draw(requests, self._params)
        ]


class BeamAnswers:
    """The answer to a prompt is the best response that the search finds."""

    def __init__(self, search: BeamSearch, text: ResponseText, params: SamplingParams, on_progress: OnProgress):
        self._search, self._text, self._params, self._on_progress = search, text, params, on_progress

    def answers(self, entries: Sequence[Entry], requests: Sequence[Request]) -> list[list[Answer]]:
        """Return one answer for each prompt."""
        found = []
        for request in requests:
            beam = self._search.search(request, self._params)
            found.append([answer_of(beam.trajectories[0], self._text, sampled=beam.sampled_tokens)])
            self._on_progress(1)
        return found
