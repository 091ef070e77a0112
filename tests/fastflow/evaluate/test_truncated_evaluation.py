"""`--top_k` and `--min_p` of evaluations, beside a training too: they reach the sampler, and results name them."""

from __future__ import annotations

import json

import pytest

from evaluated_runs import evaluated
from evaluations import SETTINGS
from fastflow.cli import main
from fastflow.demo.small_model import make_tokenizer
from fastflow.evaluate.conditions import sampling_in_words
from fastflow.evaluate.task import find_task
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import SamplingParams
from fastflow.train.curve import Curve
from fastflow.train.evaluation import Evaluation
from small_models import make_causal_lm

parquet = pytest.importorskip("pyarrow.parquet")


def responses_of(sums, output, *more) -> list[str]:
    base, file, _ = sums
    arguments = ["evaluate", str(base), "--tasks", str(file), "--output", str(output), "--grader", "numeric",
                 "--max_tokens", "24", "--limit", "3", "--model.device", "cpu", *more]  # fmt: skip
    assert main(arguments) == 0
    (task,) = json.loads((output / "results.json").read_text())["tasks"]
    return [row["response"] for row in parquet.read_table(output / task["models"][0]["responses"]).to_pylist()]


@pytest.mark.parametrize("way", [("top_k", "1"), ("min_p", "1")])
def test_the_likeliest_token_alone_is_greedy(way, sums, tmp_path):
    name, value = way
    likeliest = responses_of(sums, tmp_path / "truncated", "--samples", "2", f"--{name}", value)
    greedy = responses_of(sums, tmp_path / "greedy", "--samples", "1", "--temperature", "0")
    assert likeliest == [text for text in greedy for _ in range(2)]
    said = f"temperature 1, top-p 1, {name.replace('_', '-')} {value}, at most"
    assert said in (tmp_path / "truncated" / "results.md").read_text()
    assert "top-p 1, at most" in (tmp_path / "greedy" / "results.md").read_text()


def test_results_from_before_can_be_shown():
    assert sampling_in_words(SETTINGS) == "temperature 1, top-p 1"


def test_evaluations_beside_a_training_take_them(tmp_path):
    config = evaluated(tmp_path, eval__top_k=20, eval__min_p=0.1, eval__top_p=0.95, eval__temperature=0.6)
    expected = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
    curve = Curve(tmp_path / "run", [find_task(config.eval.tasks[0], grader="exact")], config)
    assert expected.items() <= curve._settings().items()
    policy, tokenizer = PackedModel(make_causal_lm()), make_tokenizer(list("0123456789"))
    evaluation = Evaluation([], config, policy, tokenizer, tmp_path / "run")
    limit = evaluation._params.max_response_tokens
    assert evaluation._params == SamplingParams(max_response_tokens=limit, **expected)


def test_settings_of_training_are_sent_to_their_place(capsys):
    for name in ("top_k", "min_p"):
        assert main(["evaluate", "model", "--tasks", "own.jsonl", f"--rollout.{name}", "1"]) == 2
        assert f"set eval.{name}" in capsys.readouterr().err
