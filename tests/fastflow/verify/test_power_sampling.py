"""The checks of power sampling notice a chain without its length factor, and weights that are wrong."""

from __future__ import annotations

import pytest

from fastflow.rollout.power import mcmc, smc
from fastflow.verify import power_sampling
from fastflow.verify.checks import make_models


@pytest.fixture
def few(monkeypatch):
    """Fewer chains, and bounds that their noise leaves room for."""
    monkeypatch.setattr(power_sampling, "CHAINS", 1500)
    monkeypatch.setattr(power_sampling, "PUBLISHED_CHAINS", 500)
    monkeypatch.setattr(power_sampling, "PARTICLES", (1, 32))
    monkeypatch.setattr(power_sampling, "POPULATIONS", (1000, 60))
    monkeypatch.setattr(power_sampling, "BOUND", 0.04)


def test_the_checks_pass(few):
    exact, published, smc_check = power_sampling.power_checks(make_models, seed=1)
    assert exact.passed and published.passed and smc_check.passed
    assert published.value > 0 and "misses" in published.note


@pytest.mark.slow
def test_wrong_samplers_are_noticed(few, monkeypatch):
    right, increment = mcmc.log_acceptance, smc.log_increment

    def forgets_the_proposal(current, proposed, **options):
        return right(current, proposed, **options) + proposed.log_q.sum() - current.log_q.sum()

    monkeypatch.setattr(mcmc, "log_acceptance", forgets_the_proposal)
    monkeypatch.setattr(smc, "log_increment", lambda tail, alpha: 0.0 * increment(tail, alpha))
    exact, _, smc_check = power_sampling.power_checks(make_models, seed=1)
    assert not exact.passed and not smc_check.passed


def test_a_published_chain_that_is_exact_is_noticed(few, monkeypatch):
    monkeypatch.setattr(power_sampling, "CHAINS", 1)
    monkeypatch.setattr(power_sampling, "PARTICLES", (1, 1))
    monkeypatch.setattr(power_sampling, "POPULATIONS", (1, 1))
    right = mcmc.chain
    monkeypatch.setattr("fastflow.rollout.power.sampler.chain", lambda seed, **o: right(seed, **{**o, "form": "exact"}))
    assert not power_sampling.power_checks(make_models, seed=1)[1].passed
