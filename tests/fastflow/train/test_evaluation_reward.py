"""Evaluation during training by a function of the user's: rows without answers, numbers of any size."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from rich.console import Console

from evaluated_runs import QUESTIONS, SAMPLES, entries_of, evaluated, rows_of
from fastflow import fine_tune
from fastflow.errors import FastflowError
from fastflow.evaluate.task import find_task
from fastflow.train.trainer import Trainer
from resumed_runs import metrics_of, run_to_the_end


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("rewarded")


@pytest.fixture
def rewarded(home, monkeypatch):
    file = home / "free.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"c{n}", "bonus": n}) + "\n" for n in range(QUESTIONS)))
    (home / "training_scores.py").write_text(
        "def score(texts, records):\n"
        "    return [len(text) + 100 * record['bonus'] for text, record in zip(texts, records)]\n"
        "score.takes_lists = True\n"
    )
    monkeypatch.syspath_prepend(home)
    return {"eval__tasks": f"[{file}]", "eval__grader": "math", "eval__reward": "training_scores:score"}


def test_its_mean_is_reported_and_chooses_the_best(home, rewarded):
    best = {"run__best_metric": "eval/free/reward", "run__report": True}
    run = run_to_the_end(evaluated(home, run__output=home / "rewarded", **rewarded, **best))
    assert list(entries_of(run)) == [0, 2, 4, 5]
    for line in metrics_of(run):
        if "eval/free/tokens" not in line:
            continue
        rows = rows_of(run, line["step"])
        numbers = np.array([len(row["response"]) + 100 * row["question"] for row in rows], dtype=float)
        assert [row["reward"] for row in rows] == numbers.tolist()
        means = numbers.reshape(QUESTIONS, SAMPLES).mean(1)
        assert line["eval/free/reward"] == pytest.approx(means.mean())
        assert line["eval/free/reward_error"] == pytest.approx(means.std(ddof=1) / QUESTIONS**0.5)
        assert not [name for name in line if name.startswith(("eval/free/avg", "eval/free/pass"))]
    later = [entry["difference"] for step, entry in entries_of(run).items() if step]
    assert all(found["low"] is None or found["low"] <= found["value"] <= found["high"] for found in later)
    assert "| reward | 10" in (run / "evaluations" / "results.md").read_text()
    page = (run / "report.html").read_text()
    assert (
        re.search(r"Over the training: reward 10\d at step 0, 10\d at step 5", page) and "training_scores:score" in page
    )


def length_of(text, record):
    return len(text) + 100 * record["bonus"]


def test_a_python_program_hands_it_over(home, rewarded):
    config = evaluated(home, run__output=home / "handed", run__steps=1, **rewarded)
    settings = {
        f"{name}.{entry}": getattr(getattr(config, name), entry)
        for name, entry in (pair.split(".") for pair in (
            "model.path", "data.path", "eval.every", "eval.tasks", "rollout.max_response_tokens", "run.steps",
            "run.output", "run.threads", "batch.prompts_per_step", "batch.responses_per_prompt",
        ))
    }  # fmt: skip
    seen = []
    fine_tune(settings | {"eval.reward": length_of}, on_step=seen.append, console=Console(quiet=True))
    assert seen[-1]["eval/free/reward"] > 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval__reward": "nowhere:score"}, r"eval\.reward = 'nowhere:score' cannot be imported"),
        ({"eval__reward": "posixpath:basename"}, r"eval\.reward = .* takes \(p\), but is called with"),
        ({"eval__grader": "exact"}, r"eval\.reward = .* and eval\.grader are both set"),
        ({"eval__tasks": "[aime24]"}, r"eval\.reward = .* serves own JSONL files"),
        ({"run__best_metric": "eval/free/avg@2"}, r"best_metric = eval/free/avg@2 is not measured"),
    ],
)
def test_what_is_refused(home, rewarded, changes, words):
    settings = {**rewarded, **changes}
    with pytest.raises(FastflowError, match=words):
        Trainer(evaluated(home, run__output=home / "refused", **settings), Console(quiet=True))


def test_no_task_file_names_a_function(home):
    for more in (
        "reward: training_scores:score",
        "kind: rewarded\nreward: training_scores:score",
        "kind: rewarded",
    ):
        (home / "task.yaml").write_text(f"path: free.jsonl\ngrader: exact\n{more}\n")
        with pytest.raises(FastflowError, match=r"unknown entry reward|kind is 'rewarded'"):
            find_task(str(home / "task.yaml"))
