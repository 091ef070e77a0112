"""The five objectives by hand, the fixed point, and the user's own format checks and rewards."""

from __future__ import annotations

import math
import typing
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.config.methods import OFFLINE, PENALTY_PER_TOKEN, POLICY_GRADIENTS, Method
from fastflow.config.schema import ImportanceConfig, ObjectiveConfig
from fastflow.errors import FastflowError
from fastflow.objectives.flow import clip_bounds
from fastflow.objectives.judging import make_format_check, normalise_rewards
from fastflow.objectives.objective import Evidence
from fastflow.objectives.policy_gradient import advantages
from fastflow.objectives.policy_rewards import POLICY_REWARDS
from fastflow.objectives.trajectory_balance import OBJECTIVES


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_evidence(length, base, penalty=None, reward=None) -> Evidence:
    zeros = [0.0] * len(length)
    return Evidence(vector(*length), vector(*base), vector(*(penalty or zeros)), vector(*(reward or zeros)))


# two responses: 4 tokens, log p_base -6, malformed with psi -0.5; 2 tokens, log p_base -5, well-formed
EVIDENCE = make_evidence((4, 2), (-6, -5), (-0.5, 0), (1, -1))


@pytest.mark.parametrize(
    ("name", "alpha", "scale", "target"),
    [
        # 1/|y|; alpha (log p / |y| + psi): 4 (-1.5 - 0.5), 4 (-2.5)
        ("powerflow", 4.0, (0.25, 0.5), (-8.0, -10.0)),
        ("powerflow", 0.5, (0.25, 0.5), (-1.0, -1.25)),
        # 1; alpha (log p + psi): 4 (-6 - 0.5), 4 (-5)
        ("tb_trajectory", 4.0, (1.0, 1.0), (-26.0, -20.0)),
        # 1; log p + (alpha - 1) log p / |y| + alpha psi: -6 - 4.5 - 2, -5 - 7.5
        ("tb_token", 4.0, (1.0, 1.0), (-12.5, -12.5)),
        # 1/|y|; beta r + log p / |y| + psi: 15 - 1.5 - 0.5, -15 - 2.5
        ("flowrl", 4.0, (0.25, 0.5), (13.0, -17.5)),
        # 1; log p + beta r + psi: -6 + 15 - 0.5, -5 - 15
        ("tba", 4.0, (1.0, 1.0), (8.5, -20.0)),
    ],
)
def test_by_hand(name, alpha, scale, target):
    length_scale, log_target = OBJECTIVES[name](EVIDENCE, ObjectiveConfig(alpha=alpha, beta=15.0))
    assert length_scale.tolist() == pytest.approx(scale, abs=1e-12)
    assert log_target.tolist() == pytest.approx(target, abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_how_often_psi_counts(name):
    """By how much it moves the target's logarithm: for a response of 4 tokens, and for one of 2."""
    rest = make_evidence((4, 2), (-6, -5), (0, 0), (1, -1))
    whole = make_evidence((4, 2), (-6, -5), (-0.5, -0.5), (1, -1))
    config = ObjectiveConfig(alpha=4.0)
    (scale, penalised), (_, free) = (OBJECTIVES[name](evidence, config) for evidence in (whole, rest))
    longer, shorter = ((penalised - free) / scale).tolist()
    assert longer / shorter == pytest.approx(2 if name in PENALTY_PER_TOKEN else 1)
    (told,) = (entry.metadata["help"] for entry in fields(ObjectiveConfig) if entry.name == "format_penalty")
    assert (name in told) == (name in PENALTY_PER_TOKEN)


def test_every_objective_of_the_configuration_exists():
    for name in OBJECTIVES:
        ObjectiveConfig(name=name)
    assert {*OBJECTIVES, *POLICY_GRADIENTS, *OFFLINE} == set(typing.get_args(Method))
    assert set(POLICY_REWARDS) < set(POLICY_GRADIENTS)


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({"name": "powerflow"}, (0.1, 0.3)),
        ({"name": "flowrl"}, (0.1, 0.3)),
        ({"name": "flowrl", "flowrl_form": "release"}, (1.0, math.inf)),  # between 0 and no end
        ({"name": "flowrl", "flowrl_form": "recipe"}, (1.0, 9.0)),  # between 0 and 10
    ],
)
def test_the_forms_of_flowrl_differ_in_the_weights_bounds(changes, bounds):
    importance = ImportanceConfig(clip_low=0.1, clip_high=0.3)
    assert clip_bounds(ObjectiveConfig(**changes), importance) == bounds


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_empty_response_gives_finite_terms(name):
    for term in OBJECTIVES[name](make_evidence((0, 3), (0, -2), (-0.5, 0)), ObjectiveConfig()):
        assert torch.isfinite(term).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_two_read_the_reward(name):
    without = OBJECTIVES[name](make_evidence((4, 2), (-6, -5)), ObjectiveConfig())[1]
    rewarded = OBJECTIVES[name](make_evidence((4, 2), (-6, -5), reward=(1, -1)), ObjectiveConfig())[1]
    assert torch.equal(without, rewarded) == (name not in ("flowrl", "tba"))


responses = st.lists(st.tuples(st.integers(1, 500), st.floats(-900, -0.1), st.booleans()), min_size=1, max_size=20)


@settings(deadline=None)
@given(responses, st.floats(0.1, 8), st.floats(-5, 5), st.floats(-2, 0))
def test_the_fixed_point_of_powerflow(sampled, alpha, log_z, psi):
    """pi = p_base^alpha exp(alpha psi |y|) exp(-lambda |y|) with log_z = lambda has zero residual everywhere."""
    length, base, malformed = (torch.tensor(column, dtype=torch.float64) for column in zip(*sampled, strict=True))
    penalty = psi * malformed
    log_pi = alpha * base + alpha * penalty * length - log_z * length
    scale, target = OBJECTIVES["powerflow"](
        Evidence(length, base, penalty, torch.zeros_like(base)), ObjectiveConfig(alpha=alpha)
    )
    residual = log_z + scale * log_pi - target
    assert residual.abs().max() < 1e-9


@settings(deadline=None)
@given(responses, st.floats(0.1, 8))
def test_other_members_have_other_fixed_points(sampled, alpha):
    """tb_trajectory is at rest at p_base^alpha / Z: a constant per response, not per token."""
    length, base, _ = (torch.tensor(column, dtype=torch.float64) for column in zip(*sampled, strict=True))
    zeros = torch.zeros_like(base)
    scale, target = OBJECTIVES["tb_trajectory"](Evidence(length, base, zeros, zeros), ObjectiveConfig(alpha=alpha))
    assert (3.0 + scale * (alpha * base - 3.0) - target).abs().max() < 1e-9


class TestRewards:
    def test_by_hand(self):
        # the deviation of a sample: of (1, 3) it is sqrt(2)
        normal = normalise_rewards(vector(1, 3, 0, 0, 0, 0, 0, 6, 6, 6), [2, 8])
        assert normal[:2].tolist() == pytest.approx([-(2**-0.5), 2**-0.5], abs=1e-5)
        deviation = (5 * 2.25**2 + 3 * 3.75**2) / 7
        assert normal[2:].tolist() == pytest.approx(
            [-2.25 / deviation**0.5] * 5 + [3.75 / deviation**0.5] * 3, abs=1e-5
        )

    def test_as_advantages_are_taken(self):
        rewards = vector(0, 1, 1, 0, 1, 5, 2, 2)
        groups = torch.tensor([0] * 4 + [1] * 4)
        expected = advantages(rewards, groups, divide_by_std=True)
        torch.testing.assert_close(normalise_rewards(rewards, [4, 4]), expected)

    @pytest.mark.parametrize("rewards", [(2.0, 2.0, 2.0), (0.0,), (0.1,) * 16, (0.1,) * 3])
    def test_equal_rewards_say_nothing(self, rewards):
        assert normalise_rewards(vector(*rewards), [len(rewards)]).tolist() == [0.0] * len(rewards)

    @settings(deadline=None)
    @given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=4))
    def test_zero_mean_and_at_most_unit_deviation_in_each_group(self, groups):
        sizes = [len(group) for group in groups]
        normal = normalise_rewards(vector(*(value for group in groups for value in group)), sizes)
        for part in normal.split(sizes):
            assert abs(float(part.mean())) < 1e-6
            assert float(part.std(correction=min(len(part) - 1, 1))) < 1 + 1e-6


class TestFormatChecks:
    @pytest.mark.parametrize(
        ("text", "fine"),
        [(r"so \boxed{4}", True), (r"\boxed{", True), ("boxed{4}", False), ("", False), ("a\nb\n\\boxed{1}", True)],
    )
    def test_a_pattern_may_match_anywhere(self, text, fine):
        check = make_format_check(ObjectiveConfig(format_pattern=r"\\boxed\{"))
        assert check([text], [("", {})]) == [fine]

    def test_a_dot_crosses_lines(self):
        check = make_format_check(ObjectiveConfig(format_pattern="<a>.*</a>"))
        assert check(["<a>one\ntwo</a>"], [("", {})]) == [True]

    def test_a_callable_sees_text_and_record(self):
        check = make_format_check(ObjectiveConfig(format_check="fastflow.demo.stories:is_valid"))
        line = " in the harbour mia met a brave fox who carried the lantern home ."
        records = [{"topic": ["mia", "harbour"]}, {"topic": ["tom", "harbour"]}]
        assert check([line, line], [("", record) for record in records]) == [True, False]

    def test_no_check_switches_the_penalty_off(self):
        assert make_format_check(ObjectiveConfig()) is None

    @pytest.mark.parametrize("pattern", ["(", "[a", "*a", r"(?P<x"])
    def test_a_bad_pattern(self, pattern):
        with pytest.raises(FastflowError, match=r"^objective\.format_pattern .* is not a regular expression "):
            make_format_check(ObjectiveConfig(format_pattern=pattern))
