"""Temperature, min_p, top_k and top_p from their definitions, token by token: what every engine must draw from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastflow.data.trajectory import Group, Prompt
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request, Sampler, SamplingParams

WAYS = (
    {"top_k": 3},
    {"min_p": 0.3},
    {"top_p": 0.8},
    {"top_k": 5, "min_p": 0.1, "top_p": 0.7, "temperature": 1.5},
)


def truncated(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """The probability of each token."""
    largest = max(logits)
    weights = [math.exp((logit - largest) / params.temperature) for logit in logits]
    likeliest_first = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = [token for token in likeliest_first if weights[token] >= params.min_p]
    if params.top_k:
        kept = [token for token in kept if weights[token] >= weights[likeliest_first[: params.top_k][-1]]]
    total, nucleus = sum(weights[token] for token in kept), []
    while sum(weights[token] for token in nucleus) < params.top_p * total - 1e-12:
        nucleus.append(kept[len(nucleus)])
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(weights))]


def next_logits(model: PackedModel, ids: np.ndarray) -> list[list[float]]:
    """The logits that follow each of the ids."""
    with model.decoding() as plain, torch.no_grad():
        return plain(torch.from_numpy(ids[None])).logits[0].double().tolist()


def assert_truncates(sampler: Sampler, model: PackedModel, params: SamplingParams, atol: float = 1e-4) -> None:
    """Each token of long responses, and the frequencies of many first tokens, come from the truncated distribution."""
    prompt = Prompt(np.array([5, 6, 7]))
    (group,) = sampler.sample([Request(prompt, tuple(range(8)))], params)
    _assert_drawn_from(group, model, params, atol)
    count = 600
    first = SamplingParams(params.temperature, params.top_p, params.top_k, params.min_p, max_response_tokens=1)
    (group,) = sampler.sample([Request(prompt, tuple(range(100, 100 + count)))], first)
    expected = np.array(truncated(next_logits(model, prompt.ids)[-1], params))
    found = np.bincount([entry.response_ids[0] for entry in group.trajectories], minlength=len(expected)) / count
    assert np.count_nonzero(expected) < len(expected)
    assert 0.5 * np.abs(found - expected).sum() < 0.5 * np.sqrt(np.count_nonzero(expected) / count) * 1.5


def _assert_drawn_from(group: Group, model: PackedModel, params: SamplingParams, atol: float) -> None:
    for entry in group.trajectories:
        every = next_logits(model, np.concatenate([group.prompt.ids, entry.response_ids]))
        rows = every[len(group.prompt.ids) - 1 : -1]
        drawn = [truncated(row, params)[token] for row, token in zip(rows, entry.response_ids, strict=True)]
        np.testing.assert_allclose(entry.behaviour_logprobs, np.log(drawn), atol=atol)
