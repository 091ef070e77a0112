"""The checks of distil pass, and notice a wrong average and a policy that did not learn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastflow.config.schema import ObjectiveConfig
from fastflow.objectives import likelihood
from fastflow.verify import distillation
from fastflow.verify.checks import make_models
from fastflow.verify.distillation import gradient_check, optimum, optimum_check, training_check


@pytest.mark.parametrize("average", distillation.AVERAGES)
def test_a_gradient_is_that_of_float64(average):
    assert gradient_check(make_models, average, seed=1).passed


def test_another_average_is_noticed(monkeypatch):
    original = likelihood.token_share
    monkeypatch.setattr(likelihood, "token_share", lambda length, average, limit: original(length, "length_limit", 9))
    assert not gradient_check(make_models, "token_mean", seed=1).passed


def test_the_optimum_is_the_power_whatever_the_update():
    check = optimum_check(make_models, seed=1)
    assert check.passed and float(check.note.removeprefix("token mean ")) > 100 * distillation.OPTIMUM_BOUND


def test_the_optimum_of_each_average(monkeypatch):
    """Two responses, of 1 and of 5 tokens, each half of q: the share that the short one has at the optimum."""
    monkeypatch.setattr(distillation, "SPACE", SimpleNamespace(length=torch.tensor([1.0, 5.0]).double(), limit=8))
    q = torch.tensor([0.5, 0.5]).double().log()

    def short(average, responses):
        return float(optimum(q, average, responses)[0].exp())

    for responses in (1, 2, 4, 8):
        assert short("length_limit", responses) == pytest.approx(1 / 2)
        assert short("sequence_mean", responses) == pytest.approx(5 / 6)
    token_means = [short("token_mean", responses) for responses in (1, 2, 4, 8)]
    assert token_means == pytest.approx([5 / 6, 5 / 7, 0.605, 0.547], abs=1e-3)


def test_a_share_that_depends_on_the_update_is_noticed(monkeypatch):
    monkeypatch.setattr(
        distillation, "token_share", lambda length, average, limit: 1 / length.sum().expand(len(length))
    )
    assert not optimum_check(make_models, seed=1).passed


def test_maximum_likelihood_is_what_is_not_asked_for():
    assert ObjectiveConfig(name="distil").distil_average == "length_limit"


@pytest.mark.slow
def test_samples_of_a_power_end_at_that_power():
    assert training_check(make_models, seed=1).passed


def test_without_learning_the_distance_stays(monkeypatch):
    monkeypatch.setattr(distillation, "UPDATES", 1)
    assert training_check(make_models, seed=1).value > 5 * distillation.KL_BOUND
