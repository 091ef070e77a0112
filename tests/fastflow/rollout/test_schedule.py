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
        "begin 1", "finish", "update 1",
        "load 1", "begin 2", "finish", "update 2",
        "load 2", "begin 3", "finish", "update 3",
    ]  # fmt: skip


def test_one_ahead_samples_the_next_step_before_the_update(policy):
    diary = Diary()
    groups = run(OneAhead(diary, policy, lambda step: step, SamplingParams(), steps=3), policy, diary)
    assert groups == [(1, 0), (2, 0), (3, 1)]
    assert diary.entries == [
        "begin 1", "finish", "begin 2", "update 1",
        "finish", "load 1", "begin 3", "update 2",
        "finish", "update 3",
    ]  # fmt: skip


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
