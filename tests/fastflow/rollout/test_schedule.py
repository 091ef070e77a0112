"""When sampling, weight loads and updates happen, seen by a sampler that writes everything down."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastflow.config.schema import RolloutConfig
from fastflow.models.packed import PackedModel
from fastflow.rollout.engines import resolve_sleep
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.schedule import OneAhead, OnPolicy
from small_models import make_causal_lm


class Diary:
    """A sampler of nothing. Groups are named after the step asked for and the weights they came from."""

    def __init__(self):
        self.entries, self.loaded = [], 0

    def load_weights(self, policy):
        self.entries.append(f"load {policy.version}")
        self.loaded = policy.version

    def sample(self, requests, params):
        self.begin(requests, params)
        return self.finish()

    def begin(self, requests, params):
        self.entries.append(f"begin {requests}")
        self.begun = (requests, self.loaded)

    def finish(self):
        self.entries.append("finish")
        return self.begun

    def close(self): ...


def run(schedule, policy, diary, steps: int = 3):
    """Groups of each step, with one update after each."""
    found = []
    for step in range(1, steps + 1):
        found.append(schedule.groups(step))
        diary.entries.append(f"update {step}")
        policy.version += 1
    return found


@pytest.fixture
def policy() -> PackedModel:
    return PackedModel(make_causal_lm())


def test_on_policy_samples_from_the_weights_of_the_moment(policy):
    diary = Diary()
    groups = run(OnPolicy(diary, policy, lambda step: step, SamplingParams()), policy, diary)
    assert groups == [(1, 0), (2, 1), (3, 2)]
    assert diary.entries == [
        "load 0", "begin 1", "finish", "update 1",
        "load 1", "begin 2", "finish", "update 2",
        "load 2", "begin 3", "finish", "update 3",
    ]  # fmt: skip


def test_one_ahead_samples_the_next_step_before_the_update(policy):
    diary = Diary()
    groups = run(OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=3), policy, diary)
    assert groups == [(1, 0), (2, 0), (3, 1)]
    assert diary.entries == [
        "load 0", "begin 1", "finish", "begin 2", "update 1",
        "finish", "load 1", "begin 3", "update 2",
        "finish", "update 3",
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", [OnPolicy, lambda *all: OneAhead(*all, steps=3)], ids=["on policy", "ahead"])
def test_the_first_load_is_unconditional(schedule, policy):
    """A restored policy may have the version that the sampler was made with, and other weights."""
    diary = Diary()
    diary.loaded = policy.version = 7
    schedule(diary, policy, lambda step: step, SamplingParams()).groups(1)
    assert diary.entries[0] == "load 7"


def test_what_is_sampled_ahead_can_be_had_early_and_is_not_sampled_twice(policy):
    diary = Diary()
    schedule = OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=3)
    schedule.groups(1)
    policy.version += 1
    assert schedule.ahead() == schedule.ahead() == schedule.groups(2) == (2, 0)
    assert schedule.groups(3) == (3, 1)
    assert schedule.ahead() is None  # there is no step 4
    assert diary.entries.count("finish") == 3


def test_a_resumed_schedule_goes_on_with_what_was_sampled_ahead(policy):
    """Step 3 comes from weights that are gone; step 4 is sampled from those of now, as it would have been."""
    diary = Diary()
    policy.version = 2
    schedule = OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=4, ready=[(3, 1)])
    assert schedule.groups(3) == [(3, 1)]
    policy.version += 1
    assert schedule.groups(4) == (4, 2)
    assert diary.entries == ["load 2", "begin 4", "finish"]


@pytest.mark.parametrize("resumed", [2, 3])
def test_a_resumed_schedule_without_it_samples_its_first_step(resumed, policy):
    diary = Diary()
    schedule = OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=4)
    assert schedule.groups(resumed) == (resumed, 0)
    assert diary.entries[:3] == ["load 0", f"begin {resumed}", "finish"]


@pytest.mark.parametrize(
    ("device", "sleep", "ahead", "resolved"),
    [
        ("cpu", "auto", 0, "off"),
        ("cuda", "auto", 0, "drop-weights"),
        ("cuda", "auto", 1, "off"),
        ("cuda", "weights-to-cpu", 0, "weights-to-cpu"),
    ],
)
def test_what_auto_sleep_stands_for(device, sleep, ahead, resolved):
    policy = SimpleNamespace(device=torch.device(device))
    assert resolve_sleep(RolloutConfig(sleep=sleep, ahead=ahead), policy) == resolved


class TestDraw:
    """Other requests than a step's, between two steps."""

    def test_from_the_weights_of_the_moment(self, policy):
        diary = Diary()
        schedule = OnPolicy(diary, policy, lambda step: step, SamplingParams())
        schedule.groups(1)
        policy.version += 1
        assert schedule.draw("questions", SamplingParams()) == ("questions", 1)
        assert schedule.groups(2) == (2, 1)
        assert diary.entries.count("load 1") == 1  # the step needs no other load

    def test_what_is_sampled_ahead_comes_from_the_weights_that_it_would(self, policy):
        diary = Diary()
        schedule = OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=3)
        schedule.groups(1)
        policy.version += 1
        assert schedule.draw("questions", SamplingParams()) == ("questions", 1)
        assert schedule.draw("others", SamplingParams()) == ("others", 1)
        assert schedule.groups(2) == (2, 0)
        policy.version += 1
        assert schedule.groups(3) == (3, 1)
        assert diary.entries.count("finish") == 5


def test_sampling_follows_the_settings_but_for_what_is_named():
    rollout = RolloutConfig(temperature=0.5, top_p=0.9, max_response_tokens=7, min_response_tokens=2, stop=("\n",))
    assert SamplingParams.of(rollout, top_p=1.0) == SamplingParams(0.5, 1.0, 0, 0.0, 7, 2, ("\n",))
