"""Runs that leave cut responses out of the loss (objective.truncated = drop)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fastflow.objectives.judging import normalise_rewards
from fastflow.train.state import UnderWay
from fastflow.train.trainer import Trainer
from small_runs import configure, metrics_of, run


def test_dropping_truncated_responses(settings):
    trainer = Trainer(
        configure(settings, objective__truncated="drop", rollout__max_response_tokens=60), Console(quiet=True)
    )
    groups = trainer.sample(1)
    finished = sum(entry.finish_reason == "stop" for group in groups for entry in group.trajectories)
    updates = trainer.updates.carry_out(UnderWay(groups, 0))
    assert 0 < finished < 12
    assert sum(len(update.result.length) for update in updates) == finished


@pytest.mark.parametrize(("log_z", "sizes"), [("group_mean", [2]), ("learned", [1, 2, 1])])
def test_a_response_that_is_left_alone_has_no_mean_of_a_group(settings, log_z, sizes):
    """Of 3 responses to each of 4 prompts 1, 2, 0 and 1 end."""
    changes = {"objective__log_z": log_z, "objective__truncated": "drop"}
    trainer = Trainer(configure(settings, **changes), Console(quiet=True))
    groups = [ending(group, count) for group, count in zip(trainer.sample(1), (1, 2, 0, 1), strict=True)]
    (update,) = trainer.updates.carry_out(UnderWay(groups, 0))
    assert [len(group.trajectories) for group in update.trained.groups] == sizes
    assert len(update.result.length) == sum(sizes) and not update.result.skipped
    assert len(update.judged.groups) == 4
    (alone,) = trainer.updates.carry_out(UnderWay([groups[0], groups[2]], 1))
    assert len(alone.result.length) == 1 and not alone.result.skipped


def ending(group, count):
    """The group with its first `count` responses ended, and the others cut."""
    made = (replace(entry, finish_reason="stop" if place < count else "length")
            for place, entry in enumerate(group.trajectories))  # fmt: skip
    return replace(group, trajectories=tuple(made))


@pytest.fixture
def reward_of_length(settings, tmp_path, monkeypatch):
    """Settings for flowrl with a reward that differs between nearly all responses."""
    (tmp_path / "of_length.py").write_text("def score(text, record):\n    return float(len(text))\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings |= {"objective.name": "flowrl", "objective.reward": "of_length:score", "rollout.max_response_tokens": 60}
    return settings


@pytest.mark.parametrize("updates", [1, 2])
def test_what_is_dropped_is_measured_all_the_same(reward_of_length, updates):
    """Format and reward are of all responses, as lengths are; the loss is of those that ended."""
    settings, lines = reward_of_length, []
    settings |= {"objective.format_pattern": "no response has this", "batch.updates_per_rollout": updates}
    for truncated in ("keep", "drop"):
        settings["run.output"] = settings["run.output"].with_name(truncated)
        run(settings, objective__truncated=truncated, run__steps=1)
        lines.append(metrics_of(settings)[0])
    kept, dropped = lines
    assert 0 < dropped["truncated_share"] < 1 and dropped["tokens"] < kept["tokens"]
    for name in ("reward_mean", "reward_std", "flat_group_share", "malformed_share"):
        assert kept[name] == dropped[name], name
    assert dropped["malformed_share"] == 1 and kept["loss"] != dropped["loss"]


def test_rewards_are_normalised_among_the_responses_that_are_left(reward_of_length):
    trainer = Trainer(configure(reward_of_length, objective__truncated="drop"), Console(quiet=True))
    (update,) = trainer.updates.carry_out(UnderWay([ending(group, 2) for group in trainer.sample(1)], 0))
    groups, judgement = update.trained
    scores = torch.tensor(judgement.scores, dtype=torch.float64)
    assert [len(group.trajectories) for group in groups] == [2] * 4
    assert judgement.scores == [score for at, score in enumerate(update.judged.judgement.scores) if at % 3 < 2]
    assert torch.equal(judgement.reward, normalise_rewards(scores, [2] * 4))
    assert judgement.reward.abs().max() > 0.5


def test_a_policy_gradient_compares_with_the_responses_that_it_drops(settings):
    changes = {"objective__name": "random_reward", "rollout__max_response_tokens": 60}
    lines = []
    for truncated in ("keep", "drop"):
        settings["run.output"] = settings["run.output"].with_name(truncated)
        run(settings, objective__truncated=truncated, run__steps=1, **changes)
        lines.append(metrics_of(settings)[0])
    kept, dropped = lines
    assert 0 < dropped["truncated_share"] < 1
    for name in ("reward_mean", "residual_mean", "residual_std", "tokens"):
        assert kept[name] == dropped[name], name
    assert kept["loss"] != dropped["loss"]


def test_a_step_whose_responses_were_all_cut_is_passed_over(settings, caplog):
    changes = {"objective__truncated": "drop", "rollout__max_response_tokens": 60}
    trainer = Trainer(configure(settings, **changes), Console(quiet=True))
    groups = trainer.sample(1)
    cut = [replace(group, trajectories=tuple(replace(entry, finish_reason="length") for entry in group.trajectories))
           for group in groups]  # fmt: skip
    before = [weight.detach().clone() for weight in trainer.learner.policy.model.parameters()]
    (update, *_) = trainer.updates.carry_out(UnderWay(cut, 0))
    assert "every response reached the length limit" in update.result.skipped
    assert "skipped: every response reached" in caplog.text and "raise rollout.max_response_tokens" in caplog.text
    assert not (settings["run.output"] / "bad").exists()
    assert all(map(torch.equal, before, trainer.learner.policy.model.parameters()))
    trainer.updates.carry_out(UnderWay(groups, 0))
    assert trainer.learner.skips.in_a_row == 0
