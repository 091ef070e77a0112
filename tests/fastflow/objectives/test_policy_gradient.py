"""The clipped surrogate by hand: advantages, averages, ratios, KL, and the loss of a whole group."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.config.loss_sections import SurrogateConfig
from fastflow.config.schema import Config, ObjectiveConfig, RolloutConfig
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.share import Share, rescore
from fastflow.objectives.known_tokens import KnownTokens
from fastflow.objectives.objective import Facts
from fastflow.objectives.policy_gradient import (
    PolicyGradient,
    advantages,
    kl_estimate,
    surrogate,
    token_share,
)
from fastflow.objectives.policy_rewards import POLICY_REWARDS
from small_models import make_causal_lm, make_groups


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestAdvantages:
    def test_by_hand(self):
        # mean 1/4, sample deviation sqrt((9/16 + 3/16) / 3) = 1/2; then mean 2, deviation sqrt(2)
        reward, group = vector(1, 0, 0, 0, 3, 1), torch.tensor([0, 0, 0, 0, 1, 1])
        by_std = advantages(reward, group, divide_by_std=True)
        assert by_std.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-5)
        centred = advantages(reward, group, divide_by_std=False)
        assert centred.tolist() == [0.75, -0.25, -0.25, -0.25, 1, -1]

    @pytest.mark.parametrize("by_std", [True, False])
    @pytest.mark.parametrize("rewards", [(1.0,), (0.5, 0.5, 0.5), (-7.0, -7.0), (0.1,) * 16, (1 / 3,) * 7])
    def test_equal_rewards_and_a_group_of_one_say_nothing(self, rewards, by_std):
        reward = vector(*rewards)
        assert advantages(reward, torch.zeros(len(rewards)).long(), divide_by_std=by_std).tolist() == [0] * len(rewards)

    @settings(deadline=None)
    @given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5))
    def test_any_groups(self, parts):
        reward = vector(*(value for part in parts for value in part))
        group = torch.tensor([number for number, part in enumerate(parts) for _ in part])
        found = advantages(reward, group, divide_by_std=True)
        assert torch.isfinite(found).all()
        for number, part in enumerate(parts):
            mine = found[group == number]
            assert abs(float(mine.sum())) < 1e-6 and float(mine.square().sum()) <= max(len(part) - 1, 0) + 1e-6
            order = [math.copysign(1, a - b) for a, b in itertools.pairwise(part) if abs(a - b) > 1e-9]
            kept = [
                math.copysign(1, float(mine[i] - mine[i + 1]))
                for i, (a, b) in enumerate(itertools.pairwise(part))
                if abs(a - b) > 1e-9
            ]
            assert kept == order


@pytest.mark.parametrize(
    ("average", "shares"),
    [
        ("token_mean", [1 / 8, 1 / 8, 1 / 8]),
        ("sequence_mean", [1 / 12, 1 / 6, 1 / 6]),
        ("length_limit", [1 / 30, 1 / 30, 1 / 30]),
    ],
)
def test_the_share_of_a_token(average, shares):
    assert token_share(vector(4, 2, 2), average, 10).tolist() == pytest.approx(shares, abs=1e-15)
    assert torch.isfinite(token_share(vector(0, 0), average, 10)).all()


class TestSurrogate:
    # responses of 2 and 1 tokens; ratios 1.5, 1 and 0.5; advantages 2 and -1; bounds 0.8 and 1.28
    BEHAVIOUR = vector(-1, -2, -1)
    LOGPROB = BEHAVIOUR + vector(1.5, 1, 0.5).log()
    ADVANTAGE = vector(2, 2, -1)

    @pytest.mark.parametrize(
        ("ratio", "gain", "raw", "entering"),
        [
            ("token", [2.56, 2, -0.8], [1.5, 1, 0.5], [1.28, 1, 0.8]),
            ("token_mean", [2 * 1.5**0.5] * 2 + [-0.8], [1.5**0.5] * 2 + [0.5], [1.5**0.5] * 2 + [0.8]),
            ("sequence", [2.56, 2.56, -0.8], [1.5, 1.5, 0.5], [1.28, 1.28, 0.8]),
        ],
    )
    def test_by_hand(self, ratio, gain, raw, entering):
        found = surrogate(self.LOGPROB, self.BEHAVIOUR, self.ADVANTAGE, (2, 1), ratio, 0.2, 0.28)
        assert found.gain.tolist() == pytest.approx(gain)
        assert found.raw.tolist() == pytest.approx(raw)
        assert found.entering.tolist() == pytest.approx(entering)

    @pytest.mark.parametrize(
        ("log_ratio", "advantage", "slope"),
        [
            (1.0, 1.0, 0.0),  # above the bound, and the advantage leads further away
            (1.0, -1.0, -math.e),  # above the bound, and the gradient leads back
            (-1.0, -1.0, 0.0),
            (-1.0, 1.0, math.exp(-1)),
            (0.0, 3.0, 3.0),
        ],
    )
    @pytest.mark.parametrize("ratio", ["token", "token_mean", "sequence"])
    def test_gradient_by_hand(self, ratio, log_ratio, advantage, slope):
        logprob = vector(-2).requires_grad_()
        each = surrogate(logprob, logprob.detach() - log_ratio, vector(advantage), (1,), ratio, 0.2, 0.28)
        each.gain.sum().backward()
        assert logprob.grad.tolist() == pytest.approx([slope])

    def test_a_ratio_of_the_response_gives_each_token_its_own_gradient(self):
        logprob = self.LOGPROB.clone().requires_grad_()
        surrogate(logprob, self.BEHAVIOUR, self.ADVANTAGE, (2, 1), "sequence", 1.0, math.inf).gain.sum().backward()
        assert logprob.grad.tolist() == pytest.approx([3, 3, -0.5])  # ratio times advantage

    def test_gradient_by_finite_differences(self):
        logprob = self.LOGPROB.clone().requires_grad_()

        def gain(values):
            return surrogate(values, self.BEHAVIOUR, self.ADVANTAGE, (2, 1), "token", 0.2, 0.28).gain

        assert torch.autograd.gradcheck(gain, (logprob,))

    def test_a_ratio_beyond_every_number_stays_finite(self):
        logprob = vector(0, 0).requires_grad_()
        each = surrogate(logprob, vector(-1e4, -1e4), vector(-1, 0), (2,), "sequence", 0.2, 0.28)
        each.gain.sum().backward()
        assert torch.isfinite(each.gain).all() and torch.isfinite(logprob.grad).all()

    def test_no_tokens(self):
        none = torch.zeros(0)
        assert surrogate(none, none, none, (0, 0), "token_mean", 0.2, 0.28).gain.shape == (0,)


class TestKl:
    @pytest.mark.parametrize(("estimator", "value"), [("k3", math.exp(-1)), ("k2", 0.5)])
    def test_by_hand(self, estimator, value):
        assert kl_estimate(vector(-1), vector(-2), estimator).tolist() == pytest.approx([value])
        assert kl_estimate(vector(-1), vector(-1), estimator).tolist() == [0]

    @pytest.mark.parametrize("estimator", ["k3", "k2"])
    def test_gradient_by_finite_differences(self, estimator):
        logprob = vector(-1, -3, -0.2).requires_grad_()
        assert torch.autograd.gradcheck(lambda values: kl_estimate(values, vector(-2, -2.5, -0.2), estimator), logprob)

    def test_a_token_that_the_policy_has_lost_is_not_pushed_further(self):
        logprob = vector(-25, -21, -19).requires_grad_()
        kl_estimate(logprob, vector(0, 0, 0), "k3").sum().backward()
        assert logprob.grad[:2].tolist() == [0, 0] and float(logprob.grad[2]) == pytest.approx(1 - math.exp(19))


def trajectory(*ids: int, behaviour: float = 0.0) -> Trajectory:
    return Trajectory(np.array(ids, dtype=np.int64), np.full(len(ids), behaviour, dtype=np.float32), "stop")


def loss_of(config: Config, groups: list[Group], reward: torch.Tensor, base: float, left_out: tuple[int, ...] = ()):
    """Of a policy whose head is zero, so that each of its 40 tokens has the same probability."""
    causal_lm = make_causal_lm(tied=False)
    torch.nn.init.zeros_(causal_lm.lm_head.weight)
    policy = PackedModel(causal_lm)
    share = Share.of(policy, groups, 10**6)
    (batch, _), *_ = share.batches()
    length = torch.tensor(share.lengths, dtype=torch.float64)
    zeros = torch.zeros_like(length)
    tokens = KnownTokens(policy, share, groups, [torch.full((len(batch.rows),), base)])
    facts = Facts(
        length, zeros, zeros, reward, torch.zeros(len(length)).long(), zeros, lambda: tokens,
        torch.tensor([place in left_out for place in range(len(length))]),
    )  # fmt: skip
    return PolicyGradient(config, policy).losses(policy, facts)(policy.hidden_states(batch), batch)


UNIFORM = -math.log(40)
PAIR = [Group(Prompt(np.array([1])), (trajectory(2, behaviour=UNIFORM), trajectory(3, 4, 5, behaviour=UNIFORM)))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # rewards 1 and 0 of 1 and 3 tokens, advantages +-1/sqrt(2), ratio 1
        ({}, -(1 - 3) / 4 * 0.5**0.5),
        ({"average": "sequence_mean"}, 0.0),
        ({"average": "length_limit", "divide_by_std": False}, -(1 - 3) * 0.5 / (2 * 10)),
        # d = log p_base - log pi = -1 + log 40
        ({"kl": 0.1}, 0.5**1.5 + 0.1 * (40 / math.e - (math.log(40) - 1) - 1)),
        ({"kl": 0.1, "kl_estimator": "k2"}, 0.5**1.5 + 0.05 * (math.log(40) - 1) ** 2),
    ],
)
def test_the_loss_of_a_group_by_hand(changes, expected):
    config = Config(
        objective=ObjectiveConfig(name="grpo", reward="answer"),
        surrogate=SurrogateConfig(**changes),
        rollout=RolloutConfig(max_response_tokens=10),
    )
    output = loss_of(config, PAIR, vector(1, 0), base=-1.0)
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.log_z.tolist() == [0.5, 0.5]
    assert output.raw_ratio.tolist() == pytest.approx([1, 1]) and torch.equal(output.importance, output.raw_ratio)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # the second response is left out: -advantage of the first, its one token, by what the average divides by
        ({}, -(0.5**0.5)),
        ({"average": "sequence_mean"}, -(0.5**0.5) / 2),
        ({"average": "length_limit", "divide_by_std": False}, -0.5 / (2 * 10)),
        ({"kl": 0.1}, -(0.5**0.5) + 0.1 * (40 / math.e - (math.log(40) - 1) - 1)),
    ],
)
def test_a_response_that_is_left_out_is_still_compared_with(changes, expected):
    config = Config(
        objective=ObjectiveConfig(name="grpo", reward="answer"),
        surrogate=SurrogateConfig(**changes),
        rollout=RolloutConfig(max_response_tokens=10),
    )
    output = loss_of(config, PAIR, vector(1, 0), base=-1.0, left_out=(1,))
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.log_z.tolist() == [0.5, 0.5]


def test_a_loss_without_responses_is_zero():
    config = Config(objective=ObjectiveConfig(name="ttrl"))
    nothing = [Group(Prompt(np.array([1])), (trajectory(), trajectory()))]
    assert loss_of(config, nothing, vector(1, 0), base=-1.0).loss.item() == 0


class TestPolicyRewards:
    @pytest.fixture
    def known(self, rng):
        policy = PackedModel(make_causal_lm())
        groups = rescore(policy, make_groups(rng), 10**6)
        share = Share.of(policy, groups, 60)  # several batches
        base = FrozenModel(make_causal_lm(seed=1))
        logprobs = [torch.arange(float(len(batch.rows))) for batch, _ in share.batches()]
        assert len(logprobs) > 1
        return policy, base, groups, KnownTokens(policy, share, groups, logprobs)

    def test_certainty_is_that_of_the_full_softmax(self, known):
        policy, _, groups, tokens = known
        certainty, place = tokens.certainty, 0
        for group in groups:
            for entry in group.trajectories:
                (one, _), *_ = Share.of(policy, [Group(group.prompt, (entry,))], 10**6).batches()
                rows, head, _ = policy.head_inputs(policy.hidden_states(one)[one.rows].detach())
                logits = (rows @ head.detach().T).double()
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
                assert float(certainty.entropy[place]) == pytest.approx(float(entropy), abs=1e-5)
                uniform = (-math.log(40) - logits.log_softmax(1)).mean()  # KL(uniform || pi)
                expected = float(uniform) + math.log(40)
                assert float(certainty.self_certainty[place]) == pytest.approx(expected, abs=1e-5)
                place += 1

    def test_tokens_come_in_the_order_of_each_batch(self, known):
        _, _, groups, tokens = known
        flat = [entry for group in groups for entry in group.trajectories]
        for number, (batch, _) in enumerate(tokens.share.batches()):
            expected = np.concatenate([flat[place].behaviour_logprobs for place in batch.sequences.tolist()])
            assert tokens.of_batch(tokens.behaviour, batch).tolist() == expected.tolist()
            assert tokens.of_batch(tokens.base, batch).tolist() == tokens.base_logprobs[number].tolist()

    def test_by_hand(self):
        # lengths 4 and 2; log p_base -6 and -5; log pi -3 and -4; alpha 4 is beta 1/3
        certainty = SimpleNamespace(entropy=vector(1, 2), self_certainty=vector(5, 6))
        facts = Facts(
            vector(4, 2), vector(-6, -5), vector(0, 0), vector(0, -7), torch.zeros(2).long(), vector(-3, -4),
            lambda: SimpleNamespace(certainty=certainty), torch.zeros(2).bool(),
        )  # fmt: skip
        expected = {
            ("intuitor", None): [5, 6],
            ("rent", None): [-1, -2],
            ("rent", -7.0): [-1, -7],  # the second gives no answer
            ("rl_trajectory", None): [3 * -6 - (-3 + 6), 3 * -5 - (-4 + 5)],
            ("rl_token", None): [3 * -1.5 - (-3 + 6), 3 * -2.5 - (-4 + 5)],
        }
        for (name, unanswered), rewards in expected.items():
            chosen = ObjectiveConfig(name=name, alpha=4.0, rent_unanswered=unanswered)
            assert POLICY_REWARDS[name](facts, chosen).tolist() == rewards, name
