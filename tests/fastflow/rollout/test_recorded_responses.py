"""Recorded responses in a sampler's place: which are taken, and that only the seeds decide it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Prompt, Trajectory
from fastflow.errors import FastflowError
from fastflow.rollout.recorded import RecordedResponses, choose
from fastflow.rollout.sampler import Request, SamplingParams, requests_for


def prompt_with(count: int, weights=None) -> RecordedPrompt:
    responses = tuple(
        Trajectory(np.array([place]), np.full(1, np.nan, dtype=np.float32), "stop") for place in range(count)
    )
    return RecordedPrompt(np.array([1]), responses=responses, weights=weights or (1.0,) * count)


def taken(prompt: Prompt, count: int, step: int = 0) -> list[int]:
    (group,) = RecordedResponses().sample(requests_for([prompt], count, seed=0, step=step), SamplingParams())
    return [int(entry.response_ids[0]) for entry in group.trajectories]


def test_as_many_as_there_are_are_all_of_them():
    assert sorted(taken(prompt_with(4), 4)) == [0, 1, 2, 3]


def test_fewer_differ_from_step_to_step_and_never_repeat():
    steps = [taken(prompt_with(6), 3, step) for step in range(40)]
    assert all(len(set(places)) == 3 for places in steps)
    assert {place for places in steps for place in places} == set(range(6))


def test_more_repeat_none_before_every_other_one():
    counts = Counter(taken(prompt_with(3), 8))
    assert sorted(counts.values()) == [2, 3, 3]


def test_only_the_seeds_decide():
    assert taken(prompt_with(9), 4, step=3) == taken(prompt_with(9), 4, step=3)


def test_weights_are_shares_of_the_draws():
    counts = Counter(choose([3.0, 1.0, 0.0], 4000, seed=0))
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03) and 2 not in counts


def test_each_has_the_seed_of_its_request_and_progress_is_told():
    told: list[int] = []
    (group,) = RecordedResponses(told.append).sample([Request(prompt_with(2), (5, 7))], SamplingParams())
    assert [entry.seed for entry in group.trajectories] == [5, 7] and told == [2]


def test_a_prompt_without_responses():
    with pytest.raises(FastflowError, match="has no recorded responses"):
        taken(Prompt(np.array([1]), source="question 1"), 2)
