"""Draw tails from an engine at temperature 1 / alpha, and score them under the model at temperature 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import split_tokens, token_logprobs
from fastflow.rollout.power.walk import Ask, Tail
from fastflow.rollout.sampler import Request, Sampler, SamplingParams

TOKENS_PER_PASS = 1 << 14  # of a scoring pass; a longer sequence gets a pass of its own


class EngineProposer:
    """Has any engine continue prefixes: the prefix becomes the end of the prompt.

    policy: the model whose weights the engine holds. log_q are the engine's own log-probs, since it drew the tokens.
    The policy computes log_p, which alone decides what the target is.
    """

    def __init__(self, sampler: Sampler, policy: PackedModel, *, alpha: float):
        self._sampler, self._policy, self._alpha = sampler, policy, alpha

    def propose(self, asks: Sequence[tuple[Prompt, Ask]]) -> list[tuple[Tail, int]]:
        """Return the tail of each ask, in order, and the tokens read for it: prompt and prefix, then all that is
        scored. Equal prefixes are continued by one request, and equal sequences scored once; each ask pays in full.
        """
        requests, places = _requests(asks)
        params = SamplingParams(temperature=1 / self._alpha, max_response_tokens=max(ask.limit for _, ask in asks))
        groups = self._sampler.sample(requests, params)
        log_p = score(self._policy, groups)
        answers: list[tuple[Tail, int]] = [(Tail(), 0)] * len(asks)
        for group, scores, ask_places in zip(groups, log_p, places, strict=True):
            for entry, token_scores, place in zip(group.trajectories, scores, ask_places, strict=True):
                log_q = entry.behaviour_logprobs.astype(np.float64)
                tail = Tail(entry.response_ids, token_scores, log_q, ended=entry.finish_reason == "stop")
                answers[place] = (tail, 2 * len(group.prompt.ids) + len(tail))
        return answers


def _requests(asks: Sequence[tuple[Prompt, Ask]]) -> tuple[list[Request], list[list[int]]]:
    """Return a request for each different prefix and limit, and the places of its asks."""
    places: dict[tuple[int, bytes, int], list[int]] = {}
    for place, (prompt, ask) in enumerate(asks):
        places.setdefault((id(prompt), ask.prefix.tobytes(), ask.limit), []).append(place)
    requests = []
    for members in places.values():
        prompt, ask = asks[members[0]]
        whole = Prompt(np.concatenate([prompt.ids, ask.prefix]), source=prompt.source)
        requests.append(Request(whole, tuple(asks[place][1].seed for place in members), ask.limit))
    return requests, list(places.values())


def score(policy: PackedModel, groups: Sequence[Group]) -> list[list[np.ndarray]]:
    """Compute the log-probs of each response's tokens (n,) float64 under the policy at temperature 1, nats."""
    distinct: dict[tuple[int, bytes], tuple[int, Trajectory]] = {}
    for number, group in enumerate(groups):
        for entry in group.trajectories:
            distinct.setdefault((number, entry.response_ids.tobytes()), (number, entry))
    found: dict[int, list[Trajectory]] = {}
    for number, entry in distinct.values():
        found.setdefault(number, []).append(entry)
    reduced = [Group(groups[number].prompt, tuple(entries)) for number, entries in found.items()]
    with policy.eval_mode():
        longest = max(len(group.prompt.ids) + len(entry) for group in reduced for entry in group.trajectories)
        batches = [batch.to(policy.device) for batch in pack(reduced, max(TOKENS_PER_PASS, longest))]
        arrays = split_tokens(batches, [token_logprobs(policy, batch) for batch in batches])
    by_key = {key: array.astype(np.float64) for key, array in zip(distinct, arrays, strict=True)}
    return [
        [by_key[number, entry.response_ids.tobytes()] for entry in group.trajectories]
        for number, group in enumerate(groups)
    ]
