"""Batches at the edge of what can be learned from: one token, one response a prompt, equal responses, padded heads."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.train.command import train
from small_models import save_model

PIECES = "abcdefghij"


@pytest.fixture
def run(tmp_path):
    """A function that trains a tiny model with some settings, and returns the metrics of its steps."""

    def start(prompts=("ab", "cd", "e"), vocab_size: int = 12, **changes) -> list[dict]:
        save_model(tmp_path / "model", pieces=PIECES, vocab_size=vocab_size)
        (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        settings = {
            "model.path": tmp_path / "model", "model.device": "cpu", "data.path": tmp_path / "p.jsonl",
            "rollout.max_response_tokens": 4, "batch.prompts_per_step": 2, "batch.responses_per_prompt": 3,
            "optim.lr": 1e-3, "run.steps": 2, "run.output": tmp_path / "run",
        }  # fmt: skip
        settings |= {name.replace("__", "."): value for name, value in changes.items()}
        config, _ = read_config([f"--{name}={value}" for name, value in settings.items()])
        train(config, Console(quiet=True))  # with its report
        assert (tmp_path / "run" / "report.html").exists()
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    return start


def check(steps: list[dict]) -> None:
    assert len(steps) == 2
    for step in steps:
        assert all(math.isfinite(step[name]) for name in ("loss", "residual_mean", "grad_norm"))


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
def test_responses_of_one_token(run, log_z):
    steps = run(rollout__max_response_tokens=1, objective__log_z=log_z)
    check(steps)
    assert all(step["length_mean"] == 1 for step in steps)


def test_groups_of_one(run):
    steps = run(batch__responses_per_prompt=1)
    check(steps)
    assert all(step["slope"] is None for step in steps)  # nothing varies within a group


@pytest.mark.parametrize("log_z", ["learned", "group_mean"])
def test_all_responses_equal(run, log_z):
    """So cold that every response is the greedy one."""
    steps = run(
        rollout__temperature=1e-3, importance__source="recompute", objective__log_z=log_z, prompts=["ab"],
        batch__prompts_per_step=1,
    )  # fmt: skip
    check(steps)
    assert all(step["slope"] is None for step in steps)
    if log_z == "group_mean":
        assert steps[0]["loss"] == pytest.approx(0, abs=1e-9)


def test_a_padded_vocabulary(run):
    """The head has rows that no token of the tokenizer has; a response with them has a text all the same."""
    steps = run(vocab_size=64)
    check(steps)


def test_the_same_prompt_several_times_in_a_step(run):
    check(run(prompts=["ab", "ab", "ab"], batch__prompts_per_step=3))


def test_a_prompt_that_leaves_room_for_one_token(run):
    check(run(prompts=["a" * 127], rollout__max_response_tokens=1, batch__prompts_per_step=1))
