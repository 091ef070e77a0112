"""The demo, whole but tiny; its figures at full size are checked in CI."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.demo import command as run
from fastflow.demo import measures, tasks
from fastflow.errors import FastflowError


@pytest.fixture
def tiny_demo(monkeypatch):
    for name in ("SUMS", "STORIES"):
        task = getattr(tasks, name)
        small = {"run.steps": 2, "batch.prompts_per_step": 2, "batch.responses_per_prompt": 2}
        tiny = dataclasses.replace(task, pretraining_steps=3, held_out=3, settings={**task.settings, **small})
        monkeypatch.setattr(run, name, tiny)


def test_the_whole_demo(tiny_demo, tmp_path, capsys):
    file = tmp_path / "demo.json"
    assert run.run_demo(Console(), seed=3, output=str(tmp_path / "demo"), json_file=str(file)) == 0
    results = json.loads(file.read_text())
    sums, stories = ("base", "low_temperature", "alpha_4"), ("story_base", "story_high_temperature", "story_alpha_0.5")
    assert set(results) == {*sums, *stories, "seconds"}
    common = {"mean_length", "truncated_share", "sequence_entropy", "token_entropy"}
    for label in sums:
        assert {*common, "accuracy", "pass_at", "boxed_share"} <= set(results[label])
        assert list(results[label]["pass_at"]) == ["1", "2", "4", "8", "16"]
        assert results[label]["pass_at"]["1"] == pytest.approx(results[label]["accuracy"])
    assert "greedy_accuracy" in results["base"] and "greedy_accuracy" in results["alpha_4"]
    for label in stories:
        assert {*common, "valid_share", "distinct_share"} == set(results[label])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Reasoning" in page and "Creativity" in page
    printed = capsys.readouterr().out
    assert "PowerFlow, alpha 4" in printed and "pass@16" in printed

    run.run_demo(Console(), seed=3, output=str(tmp_path / "demo"), json_file=str(file))  # again, over its own files
    again = json.loads(file.read_text())
    results.pop("seconds"), again.pop("seconds")
    assert again == results  # the seed fixes everything


def test_negative_seed_is_refused():
    with pytest.raises(FastflowError, match="must be at least 0"):
        run.run_demo(Console(), seed=-1, output="nowhere", json_file=None)


def make_groups(outcomes: list[list[str]]):
    trajectory = Trajectory(np.arange(3), np.full(3, -1.0, dtype=np.float32), "stop")
    return [Group(Prompt(np.arange(2)), (trajectory,) * len(texts)) for texts in outcomes]


def test_pass_at_k_is_the_unbiased_estimate():
    """2 right of 4: pass@1 = 1/2, pass@2 = 1 - C(2,2)/C(4,2) = 5/6, pass@4 = 1; none right: 0."""
    texts = [["right", "wrong", "right", "wrong"], ["wrong"] * 4]
    found = measures.pass_at(make_groups(texts), texts, lambda text, _: text == "right")
    assert found == {"1": pytest.approx(1 / 4), "2": pytest.approx(5 / 12), "4": pytest.approx(1 / 2)}


def test_shares_and_entropies():
    texts = [["a", "a", "b", "c"], ["a", "a", "a", "a"]]
    assert measures.distinct_share(texts) == pytest.approx((3 / 4 + 1 / 4) / 2)
    metrics = measures.common_metrics(make_groups(texts))
    assert metrics == {"mean_length": 3, "truncated_share": 0, "sequence_entropy": 3, "token_entropy": 1}
