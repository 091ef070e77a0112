"""The embedded sampler draws from the trainer's distribution, request by request."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_contract import assert_no_shorter, assert_stopped, assert_whole, check_that_weights_are_followed
from fastflow.data.packing import pack
from fastflow.data.response_text import spell
from fastflow.data.trajectory import Prompt, flatten
from fastflow.demo.small_model import make_tokenizer
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import split_tokens, token_logprobs
from fastflow.rollout.local import LocalSampler, draw
from fastflow.rollout.sampler import SamplingParams, requests_for
from server_runs import assert_same_responses
from small_models import FAMILIES, WITHOUT_CHOICE, make_causal_lm
from special_tokens import TURN, TURN_ID, make_chat_tokenizer
from vllm_runs import PARAMS, make_requests


def make_prompts(rng, count=5):
    return [Prompt(rng.integers(1, 40, rng.integers(1, 9)), source=f"prompt {place}") for place in range(count)]


def responses(groups):
    return [trajectory.response_ids.tolist() for trajectory in flatten(groups)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_the_trainers(family, tied, rng):
    model = PackedModel(make_causal_lm(family, tied=tied))
    groups = LocalSampler(model, eos_ids=[0]).sample(requests_for(make_prompts(rng), 6, seed=0, step=1), PARAMS)
    batches = pack(groups, tokens_per_microbatch=200)
    trained = split_tokens(batches, [token_logprobs(model, batch) for batch in batches])
    for trajectory, logprobs in zip(flatten(groups), trained, strict=True):
        np.testing.assert_allclose(trajectory.behaviour_logprobs, logprobs, atol=1e-5)


@pytest.mark.filterwarnings("error:.*past_key_values:FutureWarning")
def test_the_cache_goes_by_the_name_that_the_model_gives_it(rng):
    """Releases of transformers, and models' own code, call it `past_key_values` or `cache`."""
    plain, other = make_causal_lm(), make_causal_lm()
    forward = other.model.forward
    newest = "cache" in inspect.signature(forward).parameters
    if newest:
        other.model.forward = lambda past_key_values, **rest: forward(cache=past_key_values, **rest)
    else:
        other.model.forward = lambda cache, **rest: forward(past_key_values=cache, **rest)
    requests = requests_for(make_prompts(rng), 2, seed=0, step=1)
    found = [LocalSampler(PackedModel(model), eos_ids=[0]).sample(requests, PARAMS) for model in (plain, other)]
    assert responses(found[0]) == responses(found[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_in_bfloat16_are_as_near_the_trainers_whatever_the_residual_stream(family, rng):
    """Cached passes round as packed ones do: the two are nearer to each other than to float32."""
    model = make_causal_lm(family, **WITHOUT_CHOICE.get(family, {}))
    for stream in ("float32", "bfloat16"):
        policy = PackedModel(model, autocast=True, residual_stream=stream)
        groups = LocalSampler(policy, eos_ids=[0]).sample(requests_for(make_prompts(rng), 12, seed=0, step=1), PARAMS)
        (batch,) = pack(groups, tokens_per_microbatch=10**6)
        trained, exact = token_logprobs(policy, batch), token_logprobs(PackedModel(model), batch)
        flat = flatten(groups)
        sampled = np.concatenate([flat[place].behaviour_logprobs for place in batch.sequences.tolist()])
        apart = (torch.from_numpy(sampled) - trained).square().mean().sqrt()
        assert 0 < apart < 0.6 * (trained - exact).square().mean().sqrt()


def test_under_autocast_logits_are_not_rounded_and_the_cache_is_half(rng, monkeypatch):
    """bfloat16 has 8 bits: rounded logits would show as log-probs far from the trainer's."""
    from transformers import DynamicCache

    cached, logits, update = set(), [], DynamicCache.update

    def spy_on_update(self, keys, values, *arguments, **options):
        cached.add((keys.dtype, values.dtype))
        return update(self, keys, values, *arguments, **options)

    def spy_on_draw(given, uniform, params):
        logits.append(given)
        return draw(given, uniform, params)

    monkeypatch.setattr(DynamicCache, "update", spy_on_update)
    monkeypatch.setattr("fastflow.rollout.local.draw", spy_on_draw)
    model = PackedModel(make_causal_lm("qwen3"), autocast=True)
    LocalSampler(model, eos_ids=[0]).sample(requests_for(make_prompts(rng), 2, seed=0, step=1), PARAMS)
    assert cached == {(torch.bfloat16, torch.bfloat16)}
    assert all(given.dtype == torch.float32 and not torch.equal(given, given.bfloat16().float()) for given in logits)


def test_finish_reasons_and_limits(rng):
    model = PackedModel(make_causal_lm())
    requests = requests_for(make_prompts(rng), 20, seed=0, step=1)
    groups = LocalSampler(model, eos_ids=[0, 1]).sample(requests, PARAMS)
    assert_whole(groups, requests, version=0, ends=(0, 1))
    assert {trajectory.finish_reason for trajectory in flatten(groups)} == {"stop", "length"}


def test_a_response_depends_on_its_own_seed_only(rng):
    """Other requests, their order and the number decoded at once do not matter."""
    model = PackedModel(make_causal_lm())
    requests = requests_for(make_prompts(rng), 4, seed=3, step=7)
    together = responses(LocalSampler(model, eos_ids=[0]).sample(requests, PARAMS))
    three_at_once = responses(LocalSampler(model, eos_ids=[0], max_sequences=3).sample(requests, PARAMS))
    alone = [responses(LocalSampler(model, eos_ids=[0]).sample([request], PARAMS)) for request in requests]
    assert together == three_at_once == [response for group in alone for response in group]
    other_seed = requests_for([request.prompt for request in requests], 4, seed=3, step=8)
    assert responses(LocalSampler(model, eos_ids=[0]).sample(other_seed, PARAMS)) != together


def test_seeds_are_distinct_over_steps_and_prompts(rng):
    prompts = make_prompts(rng)
    seeds = [s for step in range(50) for request in requests_for(prompts, 8, seed=0, step=step) for s in request.seeds]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**63


def test_samples_follow_the_models_distribution(rng):
    """First-token frequencies of 4,000 responses match the model's probabilities."""
    model = PackedModel(make_causal_lm())
    prompt = make_prompts(rng, 1)[0]
    (group,) = LocalSampler(model, eos_ids=[0], max_sequences=4000).sample(
        requests_for([prompt], 4000, seed=1, step=0), SamplingParams(max_response_tokens=1)
    )
    counts = np.bincount([entry.response_ids[0] for entry in group.trajectories], minlength=40)
    with model.decoding() as plain, torch.no_grad():
        expected = torch.softmax(plain(torch.from_numpy(prompt.ids[None])).logits[0, -1], -1).numpy()
    assert 0.5 * np.abs(counts / 4000 - expected).sum() < 0.05


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.05, 1),
    u=st.floats(0, 1, exclude_max=True),
)
def test_draw_inverts_the_processed_distribution(seed, temperature, top_p, u):
    """Against the definition: scale, keep the nucleus, renormalise, invert the cumulative distribution."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (1, 17)).astype(np.float32))
    token, logprob = draw(logits.clone(), torch.tensor([u]).double(), SamplingParams(temperature, top_p))
    probabilities = torch.softmax(logits[0].double() / temperature, -1)
    order = probabilities.argsort(descending=True)
    kept, mass = [], 0.0
    for index in order.tolist():
        if mass >= top_p + 1e-6:  # float32 sums: a token on the edge may fall on either side
            break
        kept.append(index)
        mass += float(probabilities[index])
    assert int(token) in kept
    if top_p == 1:
        assert float(logprob) == pytest.approx(float(probabilities[token].log()), abs=1e-4)
        below = float(probabilities[: int(token)].sum())
        assert below - 1e-6 <= u <= below + float(probabilities[token]) + 1e-6
    else:
        assert float(logprob) >= float(probabilities[token].log()) - 1e-4


def test_draw_never_picks_a_token_of_probability_zero():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    for u in (0.0, 0.25, 0.5, 0.75, 1 - 1e-16):
        token, logprob = draw(logits.clone(), torch.tensor([u], dtype=torch.float64), SamplingParams())
        assert int(token) in (1, 3)
        assert float(logprob) == pytest.approx(np.log(0.5))


def test_greedy_takes_the_most_likely_token(rng):
    model = PackedModel(make_causal_lm())
    prompt = make_prompts(rng, 1)[0]
    params = SamplingParams(temperature=0, max_response_tokens=6)
    (group,) = LocalSampler(model, eos_ids=[0]).sample(requests_for([prompt], 2, seed=0, step=0), params)
    first, second = group.trajectories
    assert first.response_ids.tolist() == second.response_ids.tolist()
    with model.decoding() as plain, torch.no_grad():
        logits = plain(torch.from_numpy(np.concatenate([prompt.ids, first.response_ids]))[None]).logits[0]
    assert logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist() == first.response_ids.tolist()


def test_samples_and_logprobs_follow_the_weights(model, rng):
    """And progress reaches every response, whichever are decoded at once."""
    finished = []
    sampler = LocalSampler(model, eos_ids=[0], on_progress=finished.append, max_sequences=7)
    check_that_weights_are_followed(sampler, model, make_requests(rng), finished, assert_same_responses)


def test_special_tokens_are_stop_texts(model, rng):
    tokenizer, requests = make_chat_tokenizer(), make_requests(rng, responses=24)
    sampler = LocalSampler(model, eos_ids=[0], tokenizer=tokenizer)
    stopped = sampler.sample(requests, SamplingParams(max_response_tokens=20, stop=(TURN,)))
    assert_stopped(stopped, partial(spell, tokenizer), (TURN,))
    assert any(trajectory.response_ids[-1] == TURN_ID for trajectory in flatten(stopped))


def test_errors_name_cause_and_remedy(rng):
    model = PackedModel(make_causal_lm())
    with pytest.raises(FastflowError, match=r"prompt 0 has \d+ tokens.*context of 128.*lower"):
        LocalSampler(model, eos_ids=[0]).sample(
            requests_for(make_prompts(rng, 1), 1, seed=0, step=0), SamplingParams(max_response_tokens=128)
        )
    with torch.no_grad():
        model.causal_lm.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FastflowError, match="NaN or infinite"):
        LocalSampler(model, eos_ids=[0]).sample(requests_for(make_prompts(rng, 1), 1, seed=0, step=0), PARAMS)


def test_decoding_restores_training_attention_even_after_an_error():
    model = PackedModel(make_causal_lm())
    model.model.train()
    with pytest.raises(ZeroDivisionError), model.decoding():
        raise ZeroDivisionError
    assert model.causal_lm.config._attn_implementation == "fastflow_packed"
    assert model.model.training


def test_fewest_tokens_and_stop_texts(rng):
    """No end before the fewest tokens; the token that completes a stop text is the response's last."""
    model, tokenizer = PackedModel(make_causal_lm()), make_tokenizer(list("abcdefghijklmnopqrstuvwxyz0123456789"))
    requests = requests_for(make_prompts(rng), 20, seed=0, step=1)
    plain = flatten(LocalSampler(model, eos_ids=[0]).sample(requests, PARAMS))
    assert any(len(trajectory) <= 4 for trajectory in plain)
    sampler = LocalSampler(model, eos_ids=[0], tokenizer=tokenizer)
    longer = sampler.sample(requests, replace(PARAMS, min_response_tokens=4))
    assert_no_shorter(longer, 4)
    assert any(trajectory.response_ids[-1] == 0 for trajectory in flatten(longer))

    def spelled(ids) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    stops = ("a", "bc", "9")
    for before, after in zip(plain, flatten(sampler.sample(requests, replace(PARAMS, stop=stops))), strict=True):
        ids, place = before.response_ids, 1
        while place < len(ids) and not any(stop in spelled(ids[:place]) for stop in stops):
            place += 1
        assert after.response_ids.tolist() == ids[:place].tolist()
        np.testing.assert_allclose(after.behaviour_logprobs, before.behaviour_logprobs[:place], atol=1e-5)
        stopped = any(stop in spelled(ids[:place]) for stop in stops) or ids[place - 1] == 0
        assert after.finish_reason == ("stop" if stopped else "length")


def test_stop_texts_need_a_tokenizer(rng):
    with pytest.raises(FastflowError, match="stop texts need a tokenizer"):
        LocalSampler(PackedModel(make_causal_lm()), eos_ids=[0]).sample(
            requests_for(make_prompts(rng, 1), 1, seed=0, step=0), replace(PARAMS, stop=("a",))
        )
