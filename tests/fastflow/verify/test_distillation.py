"""The checks of distil pass, and notice a wrong average and a policy that did not learn."""

from __future__ import annotations

import pytest

from fastflow.objectives import likelihood
from fastflow.verify import distillation
from fastflow.verify.checks import make_models
from fastflow.verify.distillation import gradient_check, optimum_check


@pytest.mark.parametrize("average", ["token_mean", "sequence_mean"])
def test_a_gradient_is_that_of_float64(average):
    assert gradient_check(make_models, average, seed=1).passed


def test_another_average_is_noticed(monkeypatch):
    original = likelihood.token_share
    monkeypatch.setattr(likelihood, "token_share", lambda length, average, limit: original(length, "length_limit", 9))
    assert not gradient_check(make_models, "token_mean", seed=1).passed


@pytest.mark.slow
def test_samples_of_a_power_end_at_that_power():
    assert optimum_check(make_models, seed=1).passed


def test_without_learning_the_distance_stays(monkeypatch):
    monkeypatch.setattr(distillation, "UPDATES", 1)
    assert optimum_check(make_models, seed=1).value > 5 * distillation.KL_BOUND
