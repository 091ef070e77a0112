"""The verdicts of the stability figure, on made-up metrics: met, and missed in every way."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest

from fastflow.demo import sums
from fastflow.sweep import command, figure_3
from fastflow.sweep.request import read_request
from fastflow.sweep.results import RunResult
from sweep_runs import quiet

BASE = {"mean_length": 20.0, "accuracy": 0.45}
LENGTHS = {"powerflow": 23.0, "tb_trajectory": 6.0, "rl_trajectory": 6.0, "tb_token": 22.0, "rl_token": 22.0}
ACCURACIES = {"powerflow": 0.97, "tb_trajectory": 0.02, "rl_trajectory": 0.02, "tb_token": 0.9, "rl_token": 0.9}


def run(method: str, seed: int, *, length=None, accuracy=None, steps: int = 80, at: tuple[int, float] | None = None):
    """A run whose length falls from the base's to its own within 20 steps. at: another length from a step on."""
    end = LENGTHS[method] if length is None else length
    lengths = [20 + (end - 20) * min(step / 20, 1) for step in range(1, steps + 1)]
    if at is not None:
        lengths[at[0] :] = [at[1]] * (steps - at[0])
    records = [{"step": step, "length_mean": value} for step, value in enumerate(lengths, start=1)]
    right = ACCURACIES[method] if accuracy is None else accuracy
    return RunResult(f"{method}_{seed}", method, seed, records, {"accuracy": right, "mean_length": lengths[-1]}, BASE)


def results(**changes) -> list[RunResult]:
    """Two seeds of each method. changes: of the second seed of a method."""
    return [
        *(run(method, 0) for method in figure_3.METHODS),
        *(run(method, 1, **changes.get(method, {})) for method in figure_3.METHODS),
    ]


def missed(found: list[RunResult], unfinished=None) -> list[str]:
    return [verdict.claim.split(" ")[1] for verdict in figure_3.judge(found, unfinished or {}) if not verdict.met]


def test_right_work_is_likeliest_and_a_guess_is_likelier_on_average():
    """What the page says of the model, of the corpus that it learns; a sum with three digits that may be wrong."""
    wrong = sums.DIGIT_NOISE / 10  # each of nine digits
    right = 1 - 9 * wrong
    digits = 3 * (right * math.log(right) + 9 * wrong * math.log(wrong))
    written = len(sums.OPENINGS) * len(sums.JOINS)
    boxed, looped = written * len(sums.ENDINGS), written * (sums.MAX_CHECKS - 1)
    work, guess = sums.CAREFUL * right**3 / boxed, sums.GUESS / 179
    assert work > guess and boxed * work**4 > 0.9 * (boxed * work**4 + 179 * guess**4)
    kinds = {sums.CAREFUL: boxed, sums.LOOP: looped, sums.BOXLESS: boxed}
    average = sum(share * (math.log(share / ways) + digits) for share, ways in kinds.items()) / sum(kinds)
    assert average < math.log(guess)


def test_met():
    verdicts = figure_3.judge(results(), {})
    assert [verdict for verdict in verdicts if not verdict.met] == []
    assert "tb_trajectory collapses in length by step 40: 0.30 of the base's length (0.30 to 0.30)" in str(verdicts[0])
    assert str(verdicts[-1]).startswith("met: powerflow has the best accuracy of all: powerflow 97.0 %, ")


@pytest.mark.parametrize(
    ("changes", "claims"),
    [
        ({"tb_trajectory": {"length": 10.5}}, ["collapses"]),  # one seed of two
        ({"tb_trajectory": {"at": (37, 40.0)}}, ["collapses"]),
        ({"tb_trajectory": {"steps": 30}}, ["collapses"]),  # stopped before
        ({"powerflow": {"length": 15.0}}, ["keeps"]),
        ({"powerflow": {"length": 29.0}}, ["keeps"]),
        ({"powerflow": {"at": (75, 3.0)}}, ["keeps"]),  # at its end
        ({"powerflow": {"accuracy": 0.8}}, ["has"]),  # 88.5 % over seeds, below tb_token
        ({"tb_token": {"accuracy": 1.1}}, ["has"]),
    ],
)
def test_missed(changes, claims):
    assert missed(results(**changes)) == claims


def test_a_method_without_results_misses():
    assert missed([]) == ["collapses"] * len(missed([])[:-2]) + ["keeps", "has"]
    assert "keeps" in missed([entry for entry in results() if entry.group != "powerflow"])
    assert missed([entry for entry in results() if entry.group != "tb_trajectory"]) == ["collapses", "has"]


@pytest.mark.parametrize(
    ("method", "claims"),
    [
        ("tb_trajectory", ["collapses", "has"]),
        ("rl_trajectory", ["collapses", "has"]),
        ("powerflow", ["keeps", "has"]),
        ("tb_token", ["has"]),
    ],
)
def test_a_run_that_failed_misses_what_is_claimed_of_its_method(method, claims):
    """Whether it wrote nothing, or enough to be judged by the seeds that are there."""
    name = f"{method}_1"
    for found in (results(), [entry for entry in results() if entry.name != name]):
        assert missed(found) == []
        assert missed(found, {method: [name]}) == claims
        told = [str(verdict) for verdict in figure_3.judge(found, {method: [name]})]
        assert sum(f"; unfinished: {name} (bar: " in words for words in told) == len(claims)


def test_a_run_that_was_not_evaluated_misses():
    found = results()
    for method, claims in (("powerflow", ["keeps", "has"]), ("tb_token", ["has"])):
        without = [replace(entry, evaluation={}) if entry.name == f"{method}_1" else entry for entry in found]
        assert missed(without) == claims
        assert f"; no evaluation: {method}_1 (bar: " in str(figure_3.judge(without, {})[-1])
    without_base = [replace(entry, base={}) for entry in found]
    assert missed(without_base) == ["collapses", "collapses", "keeps", "has"]  # nothing to compare with


def test_a_run_that_stopped_early_is_named():
    (verdict, *_) = figure_3.judge(results(tb_trajectory={"steps": 30}), {})
    assert not verdict.met and verdict.found.endswith("; no step 40: tb_trajectory_1")


def write_runs(output, left_out=()):
    """The files of all runs of the study, as training and evaluation write them. Returns its request."""
    request = read_request(["--preset=figure-3", f"--output={output}", "--seeds=0,1"])
    for entry, made in zip(request.runs, results(), strict=True):
        assert entry.group == made.group
        if entry.name in left_out:
            continue
        entry.directory.mkdir(parents=True)
        (entry.directory / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in made.steps))
        (entry.directory / "evaluation.json").write_text(json.dumps({"base": BASE, "policy": made.evaluation}))
    return request


@pytest.mark.parametrize(
    ("left_out", "failed", "code", "words"),
    [
        ([], {}, 0, "met: powerflow keeps its length in all steps"),
        ([], {"powerflow_seed-1": "the disk has gone"}, 1, "; unfinished: powerflow_seed-1 (bar: 0.8 to 1.4)"),
        (["powerflow_seed-1"], {}, 1, "; unfinished: powerflow_seed-1 (bar: 0.8 to 1.4)"),
    ],
)
def test_the_command_judges_all_runs_that_it_was_asked_for(left_out, failed, code, words, tmp_path):
    console = quiet()
    assert command.conclude(write_runs(tmp_path, left_out), console, failed) == code
    assert words in console.export_text()


def test_the_base_counts_among_all():
    lower = [run(method, 0, accuracy=0.4 if method == "powerflow" else 0.1) for method in figure_3.METHODS]
    assert missed(lower) == ["has"]


def test_inputs_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("fastflow.demo.command.make_base", lambda *a, **k: made.append("base"))
    monkeypatch.setattr("fastflow.demo.command.evaluate_model", lambda *a, **k: dict(BASE))
    figure_3.make_inputs(tmp_path, quiet())
    figure_3.make_inputs(tmp_path, quiet())
    assert made == ["base"] and len((tmp_path / figure_3.PROMPTS).read_text().splitlines()) > 1000
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    figure_3.measure(run_directory, tmp_path)
    figure_3.measure(run_directory, tmp_path)
    file = run_directory / "evaluation.json"
    assert '"policy"' in file.read_text()


def test_a_policy_that_was_trained_further_is_evaluated_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("fastflow.demo.command.evaluate_model", lambda *a, **k: asked.append(a) or dict(BASE))
    (tmp_path / figure_3.BASE_EVALUATION).write_text("{}")
    weights, file = tmp_path / "run" / "policy" / "model.safetensors", tmp_path / "run" / "evaluation.json"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    for _ in range(2):
        figure_3.measure(tmp_path / "run", tmp_path)
    assert len(asked) == 1
    later = file.stat().st_mtime_ns + 10**9
    os.utime(weights, ns=(later, later))
    figure_3.measure(tmp_path / "run", tmp_path)
    assert len(asked) == 2
