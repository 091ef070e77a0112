"""What is measured, on results whose answers are known by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.data.trajectory import Group, Prompt, Trajectory, flatten
from fastflow.data.update import UpdateResult
from fastflow.models.scoring import behaviour_logprob, group_index
from fastflow.run.metrics import effective_sample_size, measure, repetition, slope_within_groups
from fastflow.verify.exact import exact_target
from small_models import make_groups

CPU = torch.device("cpu")
SECONDS = {"sample": 2.0, "total": 5.0}


def make_result(groups, rng, *, alpha: float = 4.0, noise: float = 0.0, **changes) -> UpdateResult:
    """A result that obeys log pi = alpha log p_base - lambda |y|, with a lambda of its own in each group."""
    flat = flatten(groups)
    length = torch.tensor([len(entry) for entry in flat], dtype=torch.float64)
    group = group_index(groups)
    base = -torch.from_numpy(rng.uniform(0.5, 3, len(flat))) * length
    log_z = torch.from_numpy(rng.normal(0, 5, len(groups)))[group]
    logprob = alpha * base - log_z * length + noise * torch.from_numpy(rng.normal(size=len(flat))) * length
    made = UpdateResult(
        loss=2.0,
        grad_norm=3.0,
        lr=1e-3,
        length=length,
        group=group,
        logprob=logprob,
        base_logprob=base,
        behaviour_logprob=behaviour_logprob(groups),
        residual=torch.from_numpy(rng.normal(size=len(flat))),
        log_z=log_z,
        importance=torch.ones(len(flat), dtype=torch.float64),
        raw_ratio=torch.ones(len(flat), dtype=torch.float64),
        token_logprobs=[entry.behaviour_logprobs for entry in flat],
        base_token_logprobs=[entry.behaviour_logprobs for entry in flat],
        microbatches=2,
        tokens=100,
        seconds={"score": 0.5, "train": 1.0},
    )
    return dataclasses.replace(made, **changes)


class TestSlope:
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_alpha_is_recovered_although_log_z_differs_between_groups(self, alpha, seed):
        rng = np.random.default_rng(seed)
        results = [make_result(make_groups(rng), rng, alpha=alpha) for _ in range(2)]
        assert slope_within_groups(results) == pytest.approx(alpha, rel=1e-9)
        x, y = (torch.cat([getattr(r, name) / r.length for r in results]) for name in ("base_logprob", "logprob"))
        assert abs(np.polyfit(x.numpy(), y.numpy(), 1)[0] - alpha) > 0.1  # without centring it would not be

    def test_noise_averages_out(self, rng):
        result = make_result(make_groups(rng, prompts=40, responses=16), rng, alpha=4.0, noise=0.5)
        assert slope_within_groups([result]) == pytest.approx(4.0, abs=0.15)

    def test_a_penalty_shifts_no_response_that_counts(self, rng):
        """At PowerFlow's exact target, where half of the responses are malformed."""
        length = torch.from_numpy(rng.integers(1, 8, 40)).double()
        base = -torch.from_numpy(rng.uniform(0.5, 3, 40)) * length
        base -= base.logsumexp(0)
        penalty = -0.5 * (torch.arange(40) % 2).double()
        target, _ = exact_target(base, length, alpha=4.0, penalty=penalty)
        groups = [Group(Prompt(np.array([1])), tuple(make_trajectory(range(int(count))) for count in length))]
        result = make_result(groups, rng, logprob=target, base_logprob=base)
        assert slope_within_groups([result], [penalty]) == pytest.approx(4.0, rel=1e-6)
        assert abs(slope_within_groups([result]) - 4.0) > 0.02
        skipped = dataclasses.replace(result, logprob=torch.full_like(base, math.nan), skipped="a reason")
        assert slope_within_groups([skipped, result], [0 * penalty, penalty]) == pytest.approx(4.0, rel=1e-6)
        assert math.isnan(slope_within_groups([result], [torch.full_like(base, -0.5)]))

    def test_nan_without_variation_inside_groups(self, rng):
        alone = make_result(make_groups(rng, prompts=5, responses=1), rng)
        assert math.isnan(slope_within_groups([alone]))
        groups = make_groups(rng)
        length = torch.tensor([len(entry) for entry in flatten(groups)], dtype=torch.float64)
        assert math.isnan(slope_within_groups([make_result(groups, rng, base_logprob=-2 * length)]))

    def test_an_empty_response_is_no_division_by_zero(self, rng):
        group = Group(Prompt(np.array([1])), (make_trajectory([]), make_trajectory([1]), make_trajectory([1, 2])))
        assert math.isfinite(slope_within_groups([make_result([group], rng)]))


class TestEffectiveSampleSize:
    @pytest.mark.parametrize(
        ("ratios", "expected"),
        [
            ((1, 1, 1, 1), 1.0),
            ((3, 3), 1.0),
            ((1, 0, 0, 0), 0.25),
            ((3, 1), 0.8),
            ((1, 2, 3), 36 / 42),
            ((5,), 1.0),
            ((3e-200, 1e-200), 0.8),
            ((3e200, 1e200), 0.8),
        ],
    )
    def test_by_hand(self, ratios, expected):
        assert effective_sample_size(torch.tensor(ratios, dtype=torch.float64)) == pytest.approx(expected)

    @settings(deadline=None)
    @given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(0.1, 10))
    def test_between_one_nth_and_one_and_free_of_scale(self, ratios, scale):
        ratio = torch.tensor(ratios, dtype=torch.float64)
        size = effective_sample_size(ratio)
        assert 1 / len(ratios) - 1e-9 <= size <= 1 + 1e-9
        assert effective_sample_size(scale * ratio) == pytest.approx(size)


def make_trajectory(ids, finish_reason="stop", logprob=-1.0) -> Trajectory:
    return Trajectory(np.array(ids, dtype=np.int64), np.full(len(ids), logprob, dtype=np.float32), finish_reason)


class TestRepetition:
    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            ([1, 2, 3, 4, 5, 6], 0.0),  # 3 distinct of 3
            ([1] * 8, 0.8),  # 5 windows, one distinct
            ([1, 2, 1, 2, 1, 2], 1 / 3),  # 1212 2121 1212
            ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # the first window returns
            ([1] * 5, 0.5),
            ([1] * 4, 0.0),  # a single window
            ([1, 1], 0.0),
            ([], 0.0),
        ],
    )
    def test_by_hand(self, ids, expected):
        assert repetition([np.array(ids, dtype=np.int64)]) == pytest.approx(expected)

    def test_the_mean_over_responses(self):
        assert repetition([np.array([1] * 8), np.array([1, 2, 3, 4, 5])]) == pytest.approx(0.4)


class TestMeasure:
    @pytest.fixture
    def groups(self):
        """Lengths 2, 4 and 1, 13; log-probs per token -1 and -2; one response of four cut."""
        return [
            Group(Prompt(np.array([1])), (make_trajectory([1, 2]), make_trajectory([3] * 4, logprob=-2.0))),
            Group(Prompt(np.array([2, 3])), (make_trajectory([9]), make_trajectory(range(13), "length"))),
        ]

    @pytest.fixture
    def measured(self, groups, rng):
        first = make_result(
            groups[:1],
            rng,
            loss=1.0,
            raw_ratio=torch.tensor([1.0, 3.0]).double(),
            importance=torch.tensor([1.0, 1.28]).double(),
            residual=torch.tensor([1.0, -1.0]).double(),
        )
        second = make_result(groups[1:], rng, residual=torch.tensor([3.0, 1.0]).double(), lr=5e-4, grad_norm=1.0)
        return measure(
            groups, [first, second], well_formed=[True, False, True, True], scores=[1.0, 0.0, 3.0, 2.0], alpha=4.0,
            seconds=SECONDS, device=CPU,
        )  # fmt: skip

    def test_by_hand(self, measured):
        expected = {
            "loss": 1.5,
            "residual_mean": 1.0,
            "residual_std": math.sqrt(2),
            "length_mean": 5.0,
            "length_p50": 3.0,
            "length_max": 13,
            "truncated_share": 0.25,
            "malformed_share": 0.25,
            "reward_mean": 1.5,
            "reward_std": math.sqrt(5) / 2,
            "flat_group_share": 0.0,
            "base_kl": 0.0,
            "token_entropy": (2 + 8 + 1 + 13) / 20,
            "sequence_entropy": 24 / 4,
            "ratio_p50": 1.0,
            "ratio_p99": 1 + 2 * 0.97,
            "clipped_share": 0.25,
            "effective_sample_size": 36 / (4 * 12),
            "slope": 4.0,
            "alpha": 4.0,
            "grad_norm": 2.0,
            "lr": 5e-4,
            "repetition": 0.0,
            "seconds": 5.0,
            "seconds_sample": 2.0,
            "seconds_reward": 0.0,
            "seconds_score": 1.0,
            "seconds_train": 2.0,
            "sample_tokens_per_second": 10.0,
            "score_tokens_per_second": 200.0,
            "train_tokens_per_second": 100.0,
            "microbatches": 4,
            "tokens": 200,
            "responses": 4,
        }
        assert {name: measured[name] for name in expected} == pytest.approx(expected)

    def test_entropies_are_the_samplers_also_where_log_probs_were_recomputed(self, rng):
        groups = make_groups(rng)
        own = [dataclasses.replace(group, trajectories=tuple(
            dataclasses.replace(one, sampler_logprobs=np.full(len(one), -0.25, dtype=np.float32))
            for one in group.trajectories
        )) for group in groups]  # fmt: skip
        found = measure(own, [make_result(own, rng)], well_formed=None, alpha=4.0, seconds=SECONDS, device=CPU)
        lengths = [len(one) for one in flatten(own)]
        assert found["token_entropy"] == pytest.approx(0.25)
        assert found["sequence_entropy"] == pytest.approx(0.25 * np.mean(lengths))

    def test_logprob_means_are_per_token_and_per_response(self, groups, rng):
        result = make_result(groups, rng, logprob=torch.tensor([-2.0, -8.0, -3.0, -13.0]).double(),
                             base_logprob=torch.tensor([-4.0, -4.0, -1.0, -26.0]).double())  # fmt: skip
        measured = measure(groups, [result], well_formed=None, alpha=4.0, seconds=SECONDS, device=CPU)
        assert measured["logprob_mean"] == pytest.approx(-(1 + 2 + 3 + 1) / 4)
        assert measured["base_logprob_mean"] == pytest.approx(-(2 + 1 + 1 + 2) / 4)

    def test_groups_of_equal_rewards(self, groups, rng):
        results = [make_result([group], rng) for group in groups]
        measured = measure(
            groups, results, well_formed=None, scores=[1.0, 1.0, 1.0, 0.0], alpha=None, seconds=SECONDS, device=CPU
        )
        assert measured["flat_group_share"] == 0.5
        whole = measure(
            groups, [make_result(groups[:1], rng)], judged=groups, well_formed=None, scores=[1.0, 1.0, 0.0, 0.0],
            alpha=None, seconds=SECONDS, device=CPU,
        )  # fmt: skip
        assert whole["flat_group_share"] == 1.0 and whole["reward_std"] == 0.5

    def test_kl_to_the_base_over_tokens(self, groups, rng):
        own = [np.full(len(entry), -1.0, dtype=np.float32) for entry in flatten(groups)]
        base = [
            np.full(len(entry), -3.0 if number == 3 else -1.0, dtype=np.float32) for number, entry in enumerate(own)
        ]
        result = make_result(groups, rng, token_logprobs=own, base_token_logprobs=base)
        measured = measure(groups, [result], well_formed=None, alpha=None, seconds=SECONDS, device=CPU)
        assert measured["base_kl"] == pytest.approx((math.exp(-2) + 2 - 1) * 13 / 20)
        warmer = measure(
            groups, [result], well_formed=None, alpha=None, samples_the_policy=False, seconds=SECONDS, device=CPU
        )
        assert warmer["base_kl"] is None  # a mean over other tokens
        skipped = dataclasses.replace(result, skipped="a reason")
        measured = measure(groups, [skipped], well_formed=None, alpha=None, seconds=SECONDS, device=CPU)
        assert math.isnan(measured["base_kl"])

    def test_no_format_means_no_malformed_share(self, groups, rng):
        measured = measure(groups, [make_result(groups, rng)], well_formed=None, alpha=4.0, seconds=SECONDS, device=CPU)
        assert measured["malformed_share"] is None and measured["reward_mean"] is None

    def test_plain_numbers_that_json_keeps(self, measured):
        assert json.loads(json.dumps(measured, allow_nan=False)) == measured
        for name, value in measured.items():
            assert type(value) in (int, float), name
        assert measured["peak_memory_bytes"] > 10**7  # bytes, not kibibytes: torch alone is larger

    def test_sampled_and_trained_trajectories_may_differ(self, groups, rng):
        """objective.truncated = drop: lengths are the rollout's, residuals those of what was trained on."""
        kept = [groups[0], Group(groups[1].prompt, groups[1].trajectories[:1])]
        measured = measure(groups, [make_result(kept, rng)], well_formed=None, alpha=4.0, seconds=SECONDS, device=CPU)
        assert measured["length_mean"] == 5.0
        assert measured["responses"] == 4
        assert measured["truncated_share"] == 0.25
