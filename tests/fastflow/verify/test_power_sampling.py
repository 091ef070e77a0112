"""The checks of power sampling notice a chain without its length factor, and weights that are wrong."""

from __future__ import annotations

import math

import pytest
import torch

from fastflow.rollout.power import mcmc, smc
from fastflow.verify import one_move, power_sampling
from fastflow.verify.checks import make_models
from fastflow.verify.exact import policy_distribution


@pytest.fixture
def few(monkeypatch):
    """Fewer chains, and bounds that their noise leaves room for."""
    monkeypatch.setattr(power_sampling, "CHAINS", 1500)
    monkeypatch.setattr(power_sampling, "PUBLISHED_CHAINS", 500)
    monkeypatch.setattr(power_sampling, "PARTICLES", (1, 32))
    monkeypatch.setattr(power_sampling, "POPULATIONS", (1000, 60))
    monkeypatch.setattr(power_sampling, "BOUND", 0.04)


def test_any_model_s_power_is_kept_by_an_exact_move_and_by_no_published_one():
    found = [power_sampling.kept_check(make_models, seed) for seed in range(3)]
    assert all(check.passed and check.value > 0 for check in found)
    published = [float(check.note.removeprefix("published ")) for check in found]
    assert min(published) > 0.05 and len(set(published)) == 3  # each seed has a model of its own


def test_a_move_without_the_ratio_of_lengths_is_noticed(monkeypatch):
    right = one_move.log_acceptance

    def forgets_length(current, proposed, *, kept, **options):
        lengths = math.log(kept + len(current)) - math.log(kept + len(proposed))
        return right(current, proposed, kept=kept, **options) - lengths

    monkeypatch.setattr(one_move, "log_acceptance", forgets_length)
    assert not any(power_sampling.kept_check(make_models, seed).passed for seed in range(3))


def test_ten_moves_do_not_suffice_for_every_model(monkeypatch):
    """The example of docs/method.md."""
    monkeypatch.setattr(power_sampling, "ALPHA", 4.0)
    (policy, _), prompt = make_models(power_sampling.SPACE, 0), power_sampling._prompt(power_sampling.SPACE)
    target = torch.softmax(4 * policy_distribution(policy, prompt, power_sampling.SPACE), 0).numpy()
    assert power_sampling.chain_distance(policy, prompt, target, "exact", 1000, 0) == pytest.approx(0.11, abs=0.02)


def test_the_checks_pass(few):
    kept, exact, published, smc_check = power_sampling.power_checks(make_models, seed=1)
    assert kept.passed
    assert exact.passed and published.passed and smc_check.passed
    assert published.value > 0 and "misses" in published.note


@pytest.mark.slow
def test_wrong_samplers_are_noticed(few, monkeypatch):
    right, increment = mcmc.log_acceptance, smc.log_increment

    def forgets_the_proposal(current, proposed, **options):
        return right(current, proposed, **options) + proposed.log_q.sum() - current.log_q.sum()

    monkeypatch.setattr(mcmc, "log_acceptance", forgets_the_proposal)
    monkeypatch.setattr(smc, "log_increment", lambda tail, alpha: 0.0 * increment(tail, alpha))
    exact, _, smc_check = power_sampling.reached_checks(make_models, seed=1)
    assert not exact.passed and not smc_check.passed


def test_a_published_chain_that_is_exact_is_noticed(few, monkeypatch):
    monkeypatch.setattr(power_sampling, "CHAINS", 1)
    monkeypatch.setattr(power_sampling, "PARTICLES", (1, 1))
    monkeypatch.setattr(power_sampling, "POPULATIONS", (1, 1))
    right = mcmc.chain
    monkeypatch.setattr("fastflow.rollout.power.sampler.chain", lambda seed, **o: right(seed, **{**o, "form": "exact"}))
    assert not power_sampling.reached_checks(make_models, seed=1)[1].passed
