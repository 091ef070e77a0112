"""`fastflow evaluate --reward`: a function of the user's in place of grader and gold answers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from fastflow.cli import main
from small_models import save_model

parquet = pytest.importorskip("pyarrow.parquet")
SOURCE = "def score(text, record):\n    return len(text) + record['bonus']\n"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Runs the command on two tiny models. Returns its exit code."""
    for seed, name in enumerate(("first", "second")):
        save_model(tmp_path / name, seed=seed)
    file = tmp_path / "free.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"c{n}", "bonus": n / 1000}) + "\n" for n in range(3)))
    (tmp_path / "own_scores.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)

    def run(*more: str) -> int:
        models = [str(tmp_path / name) for name in ("first", "second")]
        return main([
            "evaluate", *models, "--tasks", str(file), "--output", str(tmp_path / "out"), "--max_tokens", "8",
            "--samples", "2", "--reward", "own_scores:score", "--model.device", "cpu", *more,
        ])  # fmt: skip

    return run


def results_of(home):
    return json.loads((home / "out" / "results.json").read_text())


def test_its_mean_is_reported_with_its_error(asked, tmp_path, capsys):
    assert asked() == 0
    (task,) = results_of(tmp_path)["tasks"]
    assert task["grader"] == "own_scores:score"
    first, second = task["models"]
    means = []
    for entry in (first, second):
        rows = parquet.read_table(tmp_path / "out" / entry["responses"]).to_pylist()
        numbers = [len(row["response"]) + row["question"] / 1000 for row in rows]
        assert [row["reward"] for row in rows] == numbers
        means.append(np.array(numbers).reshape(3, 2).mean(1))
        found = entry["scores"]["reward"]
        assert found["value"] == pytest.approx(means[-1].mean())
        assert found["error"] == pytest.approx(means[-1].std(ddof=1) / 3**0.5)
        assert "verdicts" not in entry["scores"] and "pass_at" not in entry["scores"]
    assert second["difference"]["value"] == pytest.approx((means[1] - means[0]).mean())
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| reward | " in table and "| reward less the first's, 95 % | " in table
    assert "- reward: mean over prompts" in table and "avg" not in table
    assert "reward" in (tmp_path / "out" / "report.html").read_text()


def test_a_function_that_changed_takes_no_earlier_response(asked, tmp_path, capsys):
    assert asked() == 0
    capsys.readouterr()
    assert asked() == 0
    assert capsys.readouterr().out.count("all responses are there already") == 2
    (tmp_path / "own_scores.py").write_text(SOURCE.replace("len(text)", "1000 + len(text)"))
    del sys.modules["own_scores"]
    assert asked() == 2
    assert "holds another evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--grader", "exact"], "eval.reward = own_scores:score and eval.grader are both set"),
        (["--method", "majority_vote"], "majority_vote compares answers"),
        (["--tasks", "aime24"], "serves own JSONL files"),
        (["--reward", "nowhere:score"], "eval.reward = 'nowhere:score' cannot be imported"),
        (["--reward", "posixpath:basename"], "takes (p), but is called with (text, record)"),
    ],
)
def test_what_is_refused(asked, tmp_path, capsys, more, words):
    assert asked(*more) == 2
    assert words in capsys.readouterr().err
