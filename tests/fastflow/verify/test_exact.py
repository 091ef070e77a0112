"""The enumeration, the exact target and the exact distributions, against answers found another way."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fastflow.config.schema import ObjectiveConfig
from fastflow.data.trajectory import Prompt
from fastflow.models.packed import PackedModel
from fastflow.verify.exact import (
    SequenceSpace,
    exact_target,
    kl_divergence,
    policy_distribution,
    table_distribution,
    total_variation,
    train_table,
)
from small_models import make_causal_lm

SMALL = SequenceSpace(tokens=3, limit=3)


def random_table(space: SequenceSpace, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(len(space.prefixes), space.vocab_size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("tokens", "limit", "ended", "cut"), [(5, 5, 781, 3125), (3, 2, 4, 9), (1, 1, 1, 1)])
def test_every_response_is_enumerated_once(tokens, limit, ended, cut):
    space = SequenceSpace(tokens, limit)
    assert len(space) == len(set(space.responses)) == ended + cut
    assert sum(response[-1] == space.eos_id for response in space.responses) == ended
    assert all(space.eos_id not in response[:-1] for response in space.responses)
    assert all(len(response) == limit for response in space.responses if response[-1] != space.eos_id)


def test_an_empty_space_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SequenceSpace(tokens=0, limit=3)


def test_rows_of_the_table_are_the_prefixes_of_each_response():
    for index, (start, stop) in enumerate(zip(SMALL.cu_seqlens[:-1], SMALL.cu_seqlens[1:], strict=True)):
        response = SMALL.responses[index]
        prefixes = [SMALL.prefixes[row] for row in SMALL.prefix_rows[start:stop]]
        assert prefixes == [response[:t] for t in range(len(response))]
        assert SMALL.targets[start:stop].tolist() == list(response)


def test_probabilities_sum_to_one_and_are_products_of_the_table():
    table = random_table(SMALL)
    logprob = table_distribution(table, SMALL)
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    p = torch.softmax(table, dim=-1)
    row = {prefix: index for index, prefix in enumerate(SMALL.prefixes)}
    cut = p[row[()], 2] * p[row[(2,)], 0] * p[row[(2, 0)], 1]  # no factor for an end of sequence that was never sampled
    ended = p[row[()], 2] * p[row[(2,)], SMALL.eos_id]
    assert logprob[SMALL.place[(2, 0, 1)]].exp().item() == pytest.approx(cut.item())
    assert logprob[SMALL.place[(2, SMALL.eos_id)]].exp().item() == pytest.approx(ended.item())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_packed_distribution_is_the_product_of_plain_next_token_probabilities(family):
    model = make_causal_lm(family, tied=False, vocab_size=SMALL.vocab_size)
    prompt = [SMALL.eos_id, 1]
    policy = PackedModel(model)
    policy.model.train()
    packed = policy_distribution(policy, Prompt(np.array(prompt)), SMALL, tokens_per_microbatch=64)
    assert policy.model.training  # left as it was
    naive = []
    with policy.decoding() as plain, torch.no_grad():
        for response in SMALL.responses:
            logits = plain(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
            logprobs = torch.log_softmax(logits, dim=-1)
            naive.append(sum(logprobs[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)))
    np.testing.assert_allclose(packed.numpy(), naive, atol=2e-5)
    assert packed.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_head_with_other_tokens_is_refused():
    model = PackedModel(make_causal_lm(vocab_size=SMALL.vocab_size + 1))
    with pytest.raises(ValueError, match="5 rows, the space 4 tokens"):
        policy_distribution(model, Prompt(np.array([0])), SMALL)


def test_lambda_of_two_responses_by_hand():
    """p = 1/2 each for 1 and 2 tokens, alpha 2, x = exp(-lambda): (x + x^2) / 4 = 1 has x = (sqrt(17) - 1) / 2."""
    base, length = torch.full((2,), 0.5).log(), torch.tensor([1.0, 2.0])
    log_target, log_z = exact_target(base, length, alpha=2.0)
    x = (math.sqrt(17) - 1) / 2
    assert log_z == pytest.approx(-math.log(x), abs=1e-7)
    assert log_target.exp().tolist() == pytest.approx([x / 4, x * x / 4], abs=1e-7)


def test_penalty_of_two_responses_by_hand():
    """Equal lengths of 3: psi = -0.5 at alpha 2 costs the malformed one a factor exp(-3)."""
    base, length = torch.tensor([0.5, 0.5]).log(), torch.tensor([3.0, 3.0])
    log_target, _ = exact_target(base, length, alpha=2.0, penalty=torch.tensor([0.0, -0.5]))
    assert (log_target[1] - log_target[0]).item() == pytest.approx(-3.0)


@given(
    seed=st.integers(0, 10_000),
    alpha=st.floats(0.05, 12.0),
    spread=st.floats(0.0, 8.0),
    longest=st.integers(1, 400),
)
@settings(max_examples=60, deadline=None)
def test_target_is_normalised_and_lambda_falls_with_alpha(seed, alpha, spread, longest):
    rng = np.random.default_rng(seed)
    base = torch.log_softmax(torch.from_numpy(rng.normal(0, 1, 30) * spread), dim=0)
    length = torch.from_numpy(rng.integers(1, longest + 1, 30))
    log_target, log_z = exact_target(base, length, alpha)
    assert log_target.exp().sum().item() == pytest.approx(1, abs=1e-9)
    residual = log_z + log_target / length - alpha * base / length  # the PowerFlow residual
    assert residual.abs().max().item() < 1e-9 * max(1.0, abs(log_z))
    assert exact_target(base, length, alpha * 1.1)[1] < log_z  # every p(y)^alpha falls, so must lambda


def test_alpha_one_changes_nothing():
    base = table_distribution(random_table(SMALL), SMALL)
    log_target, log_z = exact_target(base, SMALL.length, alpha=1.0)
    assert log_z == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(log_target, base, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("base", "length", "message"),
    [
        (torch.zeros(2), torch.ones(3), "equal"),
        (torch.zeros(2), torch.tensor([1.0, 0.0]), "at least 1 token"),
        (torch.tensor([0.0, math.nan]), torch.ones(2), "cannot be normalised"),
    ],
)
def test_impossible_targets_are_refused(base, length, message):
    with pytest.raises(ValueError, match=message):
        exact_target(base, length, alpha=2.0)


def test_distances_by_hand():
    log_p, log_q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert total_variation(log_p, log_q) == pytest.approx(0.5)
    assert total_variation(log_p, log_p) == 0
    assert kl_divergence(log_p, log_q) == pytest.approx(math.log(2))
    assert kl_divergence(log_q, log_p) == math.inf


@pytest.mark.parametrize("log_z", ["group_mean", "learned"])
def test_table_reaches_the_target(log_z):
    table = random_table(SMALL)
    base = table_distribution(table, SMALL)
    log_target, optimal = exact_target(base, SMALL.length, 2.0)
    logprob, reached = train_table(table, SMALL, ObjectiveConfig(alpha=2.0, log_z=log_z), updates=200)
    assert total_variation(base, log_target) > 0.05
    assert total_variation(logprob, log_target) < 0.002
    assert reached == pytest.approx(optimal, abs=0.002)


@pytest.mark.parametrize("name", ["tb_trajectory", "tb_token"])
def test_table_under_another_objective_misses_the_target(name):
    table = random_table(SMALL)
    log_target, _ = exact_target(table_distribution(table, SMALL), SMALL.length, 2.0)
    settings_ = ObjectiveConfig(name=name, alpha=2.0, log_z="group_mean")
    logprob, _ = train_table(table, SMALL, settings_, updates=200)
    assert total_variation(logprob, log_target) > 0.01
