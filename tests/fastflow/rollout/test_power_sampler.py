"""Samplers of p^alpha and beam search over the embedded engine, and requests with their own length limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastflow.data.trajectory import Group, Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.beam import BeamSearch
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.power.proposal import EngineProposer, score
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.power.walk import Ask
from fastflow.rollout.sampler import Request, SamplingParams, requests_for
from fastflow.verify.checks import make_models
from fastflow.verify.exact import SequenceSpace, policy_distribution
from small_models import make_causal_lm

PARAMS = SamplingParams(max_response_tokens=10)


def prompts(rng, count=3):
    return [Prompt(rng.integers(1, 40, rng.integers(1, 6)), source=f"prompt {place}") for place in range(count)]


def mcmc(model, **options):
    options = {"alpha": 2.0, "block": 4, "steps": 2, **options}
    return PowerSampler.mcmc(LocalSampler(model, eos_ids=[0]), model, **options)


def smc(model, **options):
    options = {"alpha": 2.0, "block": 4, "particles": 3, **options}
    return PowerSampler.smc(LocalSampler(model, eos_ids=[0]), model, **options)


def test_a_request_may_have_its_own_limit(rng):
    """The tokens are the first of what the same seed gives without it."""
    sampler = LocalSampler(PackedModel(make_causal_lm()), eos_ids=[0])
    requests = requests_for(prompts(rng), 4, seed=0, step=0)
    whole = flatten(sampler.sample(requests, PARAMS))
    finished = []
    counting = LocalSampler(PackedModel(make_causal_lm()), eos_ids=[0], on_progress=finished.append)
    limits = [2, None, 99]
    cut = flatten(counting.sample([replace(r, limit=n) for r, n in zip(requests, limits, strict=True)], PARAMS))
    for place, (long, short) in enumerate(zip(whole, cut, strict=True)):
        limit = 2 if place < 4 else 10
        assert short.response_ids.tolist() == long.response_ids[:limit].tolist()
        np.testing.assert_allclose(short.behaviour_logprobs, long.behaviour_logprobs[:limit], atol=1e-5)
        assert short.finish_reason == ("length" if len(long) > limit else long.finish_reason)
    assert sum(finished) == 12


def test_the_room_of_a_request_counts_its_own_limit(rng):
    sampler = LocalSampler(PackedModel(make_causal_lm()), eos_ids=[0])
    long = Prompt(rng.integers(1, 40, 120))
    short = Request(Prompt(rng.integers(1, 40, 3)), (1,))
    sampler.sample([Request(long, (1,), limit=8), short], replace(PARAMS, max_response_tokens=100))
    with pytest.raises(FastflowError, match="exceeds the model's context of 128"):
        sampler.sample([Request(long, (1,), limit=9), short], replace(PARAMS, max_response_tokens=100))


def test_tails_carry_both_probabilities(rng):
    model = PackedModel(make_causal_lm())
    (prompt,) = prompts(rng, 1)
    proposer = EngineProposer(LocalSampler(model, eos_ids=[0]), model, alpha=2.0)
    prefix = np.array([5, 6])
    asks = [Ask(prefix, 4, 1), Ask(prefix, 4, 2), Ask(prefix[:1], 3, 3), Ask(prefix, 4, 1)]
    tails = [tail for tail, _ in proposer.propose([(prompt, ask) for ask in asks])]
    assert tails[0].ids.tolist() == tails[3].ids.tolist() and len(tails[2]) <= 3
    for ask, tail in zip(asks, tails, strict=True):
        with model.decoding() as plain, torch.no_grad():
            ids = np.concatenate([prompt.ids, ask.prefix, tail.ids])
            logits = plain(torch.from_numpy(ids)[None]).logits[0, len(prompt.ids) + len(ask.prefix) - 1 : -1].double()
        places = torch.arange(len(tail)), torch.from_numpy(tail.ids)
        np.testing.assert_allclose(tail.log_p, torch.log_softmax(logits, -1)[places], atol=1e-5)
        np.testing.assert_allclose(tail.log_q, torch.log_softmax(2 * logits, -1)[places], atol=1e-5)
        assert tail.ended == (tail.ids[-1] == 0)


@pytest.mark.parametrize("make", [mcmc, smc])
def test_responses_are_whole_and_depend_on_their_seeds_alone(make, rng):
    model = PackedModel(make_causal_lm())
    requests = requests_for(prompts(rng), 3, seed=1, step=0)
    told = []
    together = make(model, on_progress=told.append).draw(requests, PARAMS)
    assert sum(told) == 9
    alone = [make(model).draw([request], PARAMS)[0] for request in requests]
    for of_request, again in zip(together, alone, strict=True):
        for drawn, same in zip(of_request, again, strict=True):
            ids = drawn.trajectory.response_ids
            assert ids.tolist() == same.trajectory.response_ids.tolist() and drawn.cost == same.cost
            assert (ids[-1] == 0) == (drawn.trajectory.finish_reason == "stop")
            assert not (ids[:-1] == 0).any() and (ids[-1] == 0 or len(ids) == 10)
            assert drawn.cost.sampled >= len(ids) and drawn.cost.read > drawn.cost.sampled
    groups = make(model).sample(requests, PARAMS)
    scores = score(model, groups)
    for group, arrays in zip(groups, scores, strict=True):
        for entry, array in zip(group.trajectories, arrays, strict=True):
            np.testing.assert_allclose(entry.behaviour_logprobs, array, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (replace(PARAMS, temperature=0.5), "temperature"),
        (replace(PARAMS, top_p=0.9), "top_p"),
        (replace(PARAMS, top_k=20), "top_k"),
        (replace(PARAMS, min_p=0.1), "min_p"),
        (replace(PARAMS, min_response_tokens=2), "min_response_tokens"),
        (replace(PARAMS, stop=("x",)), "stop"),
    ],
)
def test_what_the_power_does_not_have_is_refused(params, name, rng):
    model = PackedModel(make_causal_lm())
    for make in (mcmc, smc):
        with pytest.raises(FastflowError, match=f"{name} is .* whole responses, which has no {name}"):
            make(model).sample(requests_for(prompts(rng), 1, seed=0, step=0), params)


@pytest.mark.parametrize("beams", [1, 2, 40])
def test_beam_search_finds_what_enumeration_finds(beams):
    """40 beams hold the whole space of 40 responses; one beam is greedy."""
    space = SequenceSpace(3, 3)
    policy, _ = make_models(space, 4)
    prompt = Prompt(np.array([space.eos_id]))
    exact = policy_distribution(policy, prompt, space)
    search = BeamSearch(policy, eos_ids=[space.eos_id], beams=beams)
    params = SamplingParams(max_response_tokens=3)
    found = search.search(Request(prompt, (0,)), params)
    totals = [float(entry.behaviour_logprobs.sum(dtype=np.float64)) for entry in found.trajectories]
    assert totals == sorted(totals, reverse=True)
    for entry, total in zip(found.trajectories, totals, strict=True):
        assert total == pytest.approx(float(exact[space.place[tuple(entry.response_ids.tolist())]]), abs=1e-5)
        assert entry.finish_reason == ("stop" if entry.response_ids[-1] == space.eos_id else "length")
    if beams == 40:
        best = space.responses[int(exact.argmax())]
        assert tuple(found.trajectories[0].response_ids.tolist()) == best
        assert sum(map(math.exp, totals)) == pytest.approx(1, abs=1e-4) and len(totals) == 40
    if beams == 1:
        (group,) = LocalSampler(policy, eos_ids=[space.eos_id]).sample(
            [Request(prompt, (0,))], replace(params, temperature=0)
        )
        assert group.trajectories[0].response_ids.tolist() == found.trajectories[0].response_ids.tolist()
    assert found.sampled_tokens >= len(found.trajectories[0])
    assert isinstance(search.sample([Request(prompt, (0,))], params)[0], Group)
