"""Recorded responses in a sampler's place: which are taken, and that only the seeds decide it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Prompt, Trajectory
from fastflow.errors import FastflowError
from fastflow.rollout.recorded import RecordedResponses, drawn
from fastflow.rollout.sampler import Request, SamplingParams, requests_for


def prompt_with(count: int, weights=None) -> RecordedPrompt:
    responses = tuple(
        Trajectory(np.array([place]), np.full(1, np.nan, dtype=np.float32), "stop") for place in range(count)
    )
    return RecordedPrompt(np.array([1]), responses=responses, weights=weights or (1.0,) * count)


def taken(prompt: Prompt, count: int, step: int = 0) -> list[int]:
    requests = requests_for([prompt], count, seed=0, step=step, turns=[step])
    (group,) = RecordedResponses(0).sample(requests, SamplingParams())
    return [int(entry.response_ids[0]) for entry in group.trajectories]


def test_as_many_as_there_are_are_all_of_them():
    assert sorted(taken(prompt_with(4), 4)) == [0, 1, 2, 3]


def test_fewer_differ_from_step_to_step_and_never_repeat():
    steps = [taken(prompt_with(6), 3, step) for step in range(40)]
    assert all(len(set(places)) == 3 for places in steps)
    assert {place for places in steps for place in places} == set(range(6))


@pytest.mark.parametrize("count", [3, 4, 5, 8, 16, 21])
def test_over_turns_none_repeats_before_every_other_one(count):
    """Also where the turns do not divide the 16 responses: then a round ends within one."""
    turns = [taken(prompt_with(16), count, turn) for turn in range(12)]
    assert all(len(set(places)) == min(count, 16) for places in turns)
    line = [place for places in turns for place in places]
    for stop in range(1, len(line) + 1):
        counts = Counter(line[:stop])
        assert max(counts.values()) - min(counts[place] for place in range(16)) <= 1


def test_prompts_have_orders_of_their_own():
    """A file may list the responses to each prompt from the best to the worst."""
    prompts = [replace(prompt_with(16), ids=np.array([name])) for name in range(20)]
    groups = RecordedResponses(0).sample(requests_for(prompts, 1, seed=0, step=0), SamplingParams())
    assert len({int(group.trajectories[0].response_ids[0]) for group in groups}) > 5


def test_more_repeat_none_before_every_other_one():
    counts = Counter(taken(prompt_with(3), 8))
    assert sorted(counts.values()) == [2, 3, 3]


def test_only_the_seeds_decide():
    assert taken(prompt_with(9), 4, step=3) == taken(prompt_with(9), 4, step=3)


def test_weights_are_shares_of_the_draws():
    counts = Counter(drawn([3.0, 1.0, 0.0], 4000, seed=0))
    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03) and 2 not in counts


def test_each_has_the_seed_of_its_request_and_progress_is_told():
    told: list[int] = []
    (group,) = RecordedResponses(0, told.append).sample([Request(prompt_with(2), (5, 7))], SamplingParams())
    assert [entry.seed for entry in group.trajectories] == [5, 7] and told == [2]


def test_a_prompt_without_responses():
    with pytest.raises(FastflowError, match="has no recorded responses"):
        taken(Prompt(np.array([1]), source="question 1"), 2)
