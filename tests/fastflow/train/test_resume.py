"""A run that was killed and resumed is the run that never stopped, to the bit: weights, moments, metrics, samples."""

from __future__ import annotations

import pytest
from resumed_runs import check_same, configure, metrics_of, run_to_the_end, run_until_killed, saves_in

KINDS = {
    "learned log_z": {},
    "group mean": {"objective__log_z": "group_mean"},
    "lora": {"lora__rank": 2, "lora__dropout": 0.3},
    "several updates": {"batch__updates_per_rollout": 2, "optim__lr": 1e-2},
    "a course of the learning rate": {"optim__schedule": "cosine", "optim__warmup_updates": 2},
    "recomputed": {"importance__source": "recompute", "rollout__temperature": 0.8},
    "an export that rounds": {"run__export_dtype": "bfloat16"},
    "bfloat16": {"model__dtype": "bfloat16", "lora__rank": 2},
    "dropped": {"objective__truncated": "drop", "rollout__max_response_tokens": 30},
}
COMMON = {"run__steps": 6, "run__save_every": 2, "run__samples_every": 1}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_resumed_is_undisturbed(changes, tmp_path):
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **COMMON, **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **COMMON, **changes)
    run_until_killed(config, before=4)  # step 3 is done and not saved: it is done again
    assert len(metrics_of(tmp_path / "cut")) == 3
    cut = run_to_the_end(config, resume="yes")
    check_same(whole, cut)


def test_a_second_resume_of_a_resumed_run(tmp_path):
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **COMMON))
    config = configure(tmp_path, run__output=tmp_path / "cut", **COMMON)
    run_until_killed(config, before=4)
    run_until_killed(config, before=6, resume="auto")
    check_same(whole, run_to_the_end(config, resume="auto"))


def test_more_than_an_epoch(tmp_path):
    """Ten prompts, four a step: step 3 ends the first epoch in its middle, step 5 the second at its end."""
    changes = {**COMMON, "run__steps": 8, "run__save_every": 1}
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
    run_until_killed(config, before=2)
    for before in range(3, 9):
        run_until_killed(config, before=before, resume="yes")
    check_same(whole, run_to_the_end(config, resume="yes"))
    assert saves_in(tmp_path / "cut") == ["step-7", "step-8"]
