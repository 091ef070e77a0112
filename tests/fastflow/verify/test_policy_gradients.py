"""The checks of the policy gradients pass, and notice a wrong surrogate, reward or optimum."""

from __future__ import annotations

import typing

import pytest
import torch

from fastflow.config.methods import POLICY_GRADIENTS, Average, KlEstimator, TokenRatio
from fastflow.config.schema import ObjectiveConfig
from fastflow.objectives import policy_gradient, policy_rewards
from fastflow.train.learner import Learner
from fastflow.verify import policy_gradients
from fastflow.verify.checks import make_models
from fastflow.verify.exact import SequenceSpace
from fastflow.verify.policy_gradients import VARIANTS, gradient_check, optimum_checks

GRPO, RENT, RATIO = (next(v for v in VARIANTS if v.title == title or v.name == title)
                     for title in ("grpo", "rent", "rl trajectory, ratio"))  # fmt: skip


def passes(variant, seed: int = 1) -> bool:
    return gradient_check(variant, make_models, seed).passed


def test_every_method_and_every_switch_has_its_variant():
    assert {variant.name for variant in VARIANTS} == set(POLICY_GRADIENTS)
    for switch, choices in (("ratio", TokenRatio), ("average", Average), ("kl_estimator", KlEstimator)):
        used = {variant.surrogate.get(switch) for variant in VARIANTS}
        assert len(used) == len(typing.get_args(choices)), switch  # None is the default
    assert any(variant.surrogate.get("divide_by_std") is False for variant in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.title or variant.name)
def test_a_gradient_is_that_of_float64(variant):
    assert passes(variant)


@pytest.mark.parametrize("variant", [GRPO, RATIO], ids=["token", "sequence"])
def test_ratios_are_clipped_at_both_ends(variant, monkeypatch):
    seen = []

    def remembers(self, *arguments, **others):
        seen.append(original(self, *arguments, **others))
        return seen[-1]

    original = Learner.update
    monkeypatch.setattr(Learner, "update", remembers)
    passes(variant)
    clipped = seen[0].importance - seen[0].raw_ratio
    assert (clipped > 0).any() and (clipped < 0).any()


def test_a_wrong_bound_is_noticed(monkeypatch):
    def tighter(*arguments):
        return original(*arguments[:-1], arguments[-1] / 2)

    original = policy_gradient.surrogate
    monkeypatch.setattr(policy_gradient, "surrogate", tighter)
    assert not passes(GRPO)


def test_a_wrong_deviation_is_noticed(monkeypatch):
    def population(reward, group, *, divide_by_std):
        return original(reward, group, divide_by_std=divide_by_std) * 1.001

    original = policy_gradient.advantages
    monkeypatch.setattr(policy_gradient, "advantages", population)
    assert not passes(GRPO)


def test_a_wrong_reward_is_noticed(monkeypatch):
    monkeypatch.setitem(
        policy_rewards.POLICY_REWARDS, "rent", lambda facts, _: -facts.known_tokens().certainty.entropy.exp()
    )
    assert not passes(RENT)


@pytest.mark.parametrize("name", policy_gradients.TARGETS)
def test_the_optimum_is_reached_and_another_alpha_is_not(name, monkeypatch):
    space = SequenceSpace(3, 3)
    assert all(check.passed for check in optimum_checks(space, name, 200, seed=0))
    monkeypatch.setattr(
        policy_gradients, "ObjectiveConfig", lambda **settings: ObjectiveConfig(**{**settings, "alpha": 3.0})
    )
    assert not all(check.passed for check in optimum_checks(space, name, 200, seed=0))


def test_the_optimum_of_rl_trajectory_is_the_power_one_plus_one_over_beta():
    """By its own words: E[log p_base] - beta KL is stationary there, so every response is worth the same."""
    space, beta = SequenceSpace(3, 3), 1.0
    base = torch.randn(len(space.prefixes), space.vocab_size, generator=torch.Generator().manual_seed(0)).double()
    base_logprob = policy_gradients.table_distribution(base, space)
    reached = policy_gradients.train_table_by_policy_gradient(
        base, space, ObjectiveConfig(name="rl_trajectory", alpha=1 + 1 / beta), updates=300
    )
    worth = base_logprob - beta * (reached - base_logprob)
    likely = reached > -6
    assert likely.sum() > 5 and float(worth[likely].std()) < 0.01 * float(base_logprob[likely].std())
