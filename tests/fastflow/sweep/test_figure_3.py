"""The verdicts of the stability figure, on made-up metrics: met, and missed in every way."""

from __future__ import annotations

import pytest

from fastflow.sweep import figure_3
from fastflow.sweep.results import RunResult

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


def missed(found: list[RunResult]) -> list[str]:
    return [verdict.claim.split(" ")[1] for verdict in figure_3.judge(found) if not verdict.met]


def test_met():
    verdicts = figure_3.judge(results())
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


def test_the_base_counts_among_all():
    lower = [run(method, 0, accuracy=0.4 if method == "powerflow" else 0.1) for method in figure_3.METHODS]
    assert missed(lower) == ["has"]


def test_inputs_are_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("fastflow.demo.command.make_base", lambda *a, **k: made.append("base"))
    monkeypatch.setattr("fastflow.demo.command.evaluate_model", lambda *a, **k: dict(BASE))
    from sweep_runs import quiet

    figure_3.make_inputs(tmp_path, quiet())
    figure_3.make_inputs(tmp_path, quiet())
    assert made == ["base"] and len((tmp_path / figure_3.PROMPTS).read_text().splitlines()) > 1000
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    figure_3.measure(run_directory, tmp_path)
    figure_3.measure(run_directory, tmp_path)
    assert '"policy"' in (run_directory / "evaluation.json").read_text()
