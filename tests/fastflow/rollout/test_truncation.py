"""top_k, min_p and top_p: tokens come from the distribution of their definitions, whatever engine draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.config.schema import RolloutConfig
from fastflow.models.packed import PackedModel
from fastflow.rollout.local import LocalSampler, draw
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.server.completion import request_body
from small_models import make_causal_lm
from truncated import WAYS, assert_truncates, truncated
from vllm_runs import make_model, needs_vllm, start


def assert_draws(logits: list[float], params: SamplingParams, expected: list[float]) -> None:
    """`draw` inverts this distribution: it finds each token inside its share and just within both ends of it."""
    ends, shares = np.cumsum(expected), np.array(expected)
    (found,) = (shares > 1e-4).nonzero()
    for inside in (0.01, 0.5, 0.99):
        uniform = torch.from_numpy(ends[found] - inside * shares[found])
        token, logprob = draw(torch.tensor([logits]).repeat(len(uniform), 1), uniform, params)
        assert token.tolist() == found.tolist()
        np.testing.assert_allclose(logprob.exp(), shares[found], rtol=1e-4)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 20),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 0.7, 1.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.1]),
)
def test_draw_inverts_the_truncated_distribution(seed, temperature, top_k, min_p, top_p):
    logits = np.random.default_rng(seed).normal(0, 2, 17).astype(np.float32).tolist()
    params = SamplingParams(temperature, top_p, top_k, min_p)
    assert_draws(logits, params, truncated(logits, params))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(top_k=1), [0, 1, 0, 0]),
        (SamplingParams(top_k=2), [0, 1 / 2, 1 / 4, 1 / 4]),  # the third equals the second
        (SamplingParams(top_k=4), [1 / 9, 4 / 9, 2 / 9, 2 / 9]),
        (SamplingParams(top_k=2**31 - 1), [1 / 9, 4 / 9, 2 / 9, 2 / 9]),
        (SamplingParams(min_p=0.4), [0, 1 / 2, 1 / 4, 1 / 4]),
        (SamplingParams(min_p=1.0), [0, 1, 0, 0]),
        (SamplingParams(top_k=3, top_p=0.5), [0, 1, 0, 0]),  # of all tokens, it has less than a half
        (SamplingParams(min_p=0.4, top_p=0.5), [0, 1, 0, 0]),
        (SamplingParams(temperature=0.5, top_k=3), [0, 2 / 3, 1 / 6, 1 / 6]),
        (
            SamplingParams(temperature=2.0, min_p=0.4),
            [1 / (3 + 8**0.5), 2 / (3 + 8**0.5), *[2**0.5 / (3 + 8**0.5)] * 2],
        ),
    ],
)
def test_what_stays_by_hand(params, expected):
    logits = np.log([1.0, 4.0, 2.0, 2.0]).astype(np.float32).tolist()
    assert_draws(logits, params, expected)
    np.testing.assert_allclose(truncated(logits, params), expected, atol=1e-6)


def test_a_token_that_may_not_come_never_comes():
    """Before the least length the end token's logit is -inf; more tokens are asked for than are left."""
    logits = [float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]
    for params in (SamplingParams(top_k=3), SamplingParams(top_k=4, min_p=0.001), SamplingParams(min_p=0.001)):
        assert_draws(logits, params, [0, 0.5, 0, 0.5, 0])


@pytest.mark.parametrize("way", WAYS)
def test_the_embedded_sampler(way):
    model = PackedModel(make_causal_lm())
    sampler = LocalSampler(model, eos_ids=[0], max_sequences=1000)
    assert_truncates(sampler, model, SamplingParams(max_response_tokens=12, **way))


@needs_vllm
def test_vllm_in_its_process():
    model = make_model()
    sampler = start(model, max_sequences=256)
    try:
        for way in WAYS:
            assert_truncates(sampler, model, SamplingParams(max_response_tokens=12, **way))
    finally:
        sampler.close()


def test_servers_are_asked_for_it():
    body = request_body("policy", [5], 1, SamplingParams(0.6, 0.95, 20, 0.05), [0])
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p")} == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05,
    }  # fmt: skip


def test_the_settings_say_whether_the_policy_itself_is_sampled():
    for way in ({"top_k": 20}, {"min_p": 0.1}, {"top_p": 0.9}, {"temperature": 0.5}, {"min_response_tokens": 1}):
        rollout = RolloutConfig(**way)
        assert not rollout.samples_the_policy
        assert SamplingParams.of(rollout).drawn_otherwise == tuple(way)
    assert RolloutConfig().samples_the_policy and not SamplingParams.of(RolloutConfig(stop=("x",))).drawn_otherwise
