"""The page of a sweep: one file, text as text, and the same figures in JSON and Markdown."""

from __future__ import annotations

import json
import math
import re

import pytest

from fastflow.drawing.figure import make_axes, to_svg
from fastflow.report.text import printable
from fastflow.sweep.measures import measure_of
from fastflow.sweep.page import Outcome, write
from fastflow.sweep.plots import thinned
from fastflow.sweep.results import RunResult, SeedMean, curve, final, seed_mean
from fastflow.sweep.study import StudyVerdict
from fastflow.visible import CONTROL
from html_page import Page
from run_directories import step_record

HOSTILE = "name <b>&</b> \x1b[31m|"


def run(group: str, seed: int, *, accuracy: float | None = None, entropy: float = 1.0, steps: int = 4, **changes):
    records = [step_record(step, length_mean=10.0 * step + seed, **changes) for step in range(1, steps + 1)]
    evaluation = {} if accuracy is None else {"accuracy": accuracy, "sequence_entropy": entropy}
    return RunResult(f"{group}_seed-{seed}", group, seed, records, evaluation, {})


@pytest.fixture
def outcome() -> Outcome:
    results = [
        *(run("alpha 1", seed, accuracy=0.5 + seed / 10, entropy=5.0) for seed in range(3)),
        *(run(HOSTILE, seed, accuracy=0.9, entropy=4.0) for seed in range(3)),
    ]
    states = [*((entry.name, "done", "") for entry in results), ("alpha 3_seed-0", "failed", "<script>no</script>")]
    return Outcome("a <i>title</i>", results, states, [StudyVerdict("it holds", "1.0", "0.8 to 1.4", True)])


@pytest.fixture
def page(outcome, tmp_path) -> Page:
    return Page(write(outcome, tmp_path))


def test_it_is_one_file_that_loads_nothing(page):
    loads = [value for _, attributes in page.tags for key, value in attributes.items()
             if key in ("src", "srcset", "data", "href", "xlink:href")]  # fmt: skip
    assert loads and all(load.startswith(("#", "data:")) for load in loads)
    assert not re.search(r"@import|url\((?!#)|<script|https?://", page.source)
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.open == [] and "#0102" not in page.source and page.source.count("<style") == 1


def test_what_evaluations_during_training_found_is_shown_unasked(tmp_path):
    scores = {"eval/held_out/avg@4": 0.25, "eval/held_out/avg@4_error": 0.1, "eval/held_out/tokens": 20.0}
    outcome = Outcome("a", [run("alpha 1", seed, **scores) for seed in range(2)], [])
    shown = [measure.metric for measure in outcome.trained()]
    assert shown[:2] == ["eval/held_out/avg@4", "slope"]
    assert "reward_mean" not in shown  # which is null in every step
    assert "held_out avg@4 % " in (text := Page(write(outcome, tmp_path)).text) and "alpha 1 2 25.0 ± 0.0" in text
    tokens = measure_of("eval/held_out/tokens")
    assert (tokens.title, tokens.unit, tokens.scale) == ("held_out tokens", "", 1)


@pytest.mark.parametrize("task", ['x"><img src=y onerror=z>', "a b\\1", "it's (50 %)", "\x1b[31mred"])
def test_the_name_of_a_task_is_text_and_leaves_references_whole(task, tmp_path):
    scores = {f"eval/{task}/avg@4": 0.25, f"eval/{task.replace(' ', '-')}/avg@4": 0.5}
    outcome = Outcome("a", [run("alpha 1", seed, **scores) for seed in range(2)], [], (), tuple(scores))
    page = Page(write(outcome, tmp_path))
    assert page.open == [] and printable(f"{task} avg@4") in page.text
    assert not CONTROL.search(page.source)
    assert not {"img", "script"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w-]+", name) for name in ids)
    wanted = re.findall(r'(?:url\(|href=")#([^)"]*)', page.source)
    assert wanted and set(wanted) <= set(ids)


def test_an_id_of_a_figure_holds_no_markup():
    figure, axes = make_axes()
    axes.plot([1, 2])
    assert re.findall(r'id="([^"]*)-', to_svg(figure, 'a"><b \\1>'))[0] == "a-b-1-"


def test_text_stays_text(page):
    assert "name <b>&</b> ␛[31m|" in page.text and "a <i>title</i>" in page.text
    assert "alpha 3_seed-0: failed: <script>no</script>" in page.text
    assert not {"b>", "i", "script"} & {tag for tag, _ in page.tags}


def test_tables_hold_mean_and_standard_error(page, tmp_path):
    assert "alpha 1 3 60.0 ± 5.8 5.00 ± 0.00" in page.text  # of 0.5, 0.6, 0.7: sd 0.1, over the root of 3
    assert "| alpha 1 | 3 | 60.0 ± 5.8 | 5.00 ± 0.00 |" in (tmp_path / "results.md").read_text()
    found = json.loads((tmp_path / "results.json").read_text())["groups"]["alpha 1"]["evaluation"]["accuracy"]
    assert found == {"value": pytest.approx(0.6), "error": pytest.approx(0.1 / math.sqrt(3)), "seeds": 3}


def test_markdown_keeps_its_table(tmp_path, outcome):
    write(outcome, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| name &lt;b>&&lt;/b> ␛[31m\\| | 3 | 90.0 ± 0.0 |" in text
    assert "- alpha 3_seed-0: failed: &lt;script>no&lt;/script>" in text
    assert "- met: it holds: 1.0 (bar: 0.8 to 1.4)" in text


def test_plots_speak(page):
    spoken = page.of("div", "aria-label")
    length = next(label for label in spoken if label.startswith("Mean length"))
    assert length == (
        "Mean length, tokens: alpha 1 11 at step 1, 41 at step 4; name <b>&</b> ␛[31m| 11 at step 1, 41 at step 4"
    )
    pareto = next(label for label in spoken if label.startswith("Accuracy"))
    assert pareto.count("on the front") == 2 and "alpha 1 60 at 5, on the front" in pareto


def test_without_an_evaluation_the_reward_stands_for_accuracy(tmp_path):
    results = [run("a", 0, reward_mean=0.5, sequence_entropy=3.0), run("b", 0, reward_mean=0.4, sequence_entropy=2.0)]
    page = Page(write(Outcome("t", results, []), tmp_path))
    pareto = next(label for label in page.of("div", "aria-label") if label.startswith("Reward against"))
    assert pareto == "Reward against entropy per response: a 0.5 at 3, on the front; b 0.4 at 2"


def test_without_accuracy_there_is_no_front(tmp_path):
    page = Page(write(Outcome("t", [run("a", 0)], []), tmp_path))
    assert "against" not in " ".join(page.of("div", "aria-label"))


def test_chosen_metrics_and_those_that_nobody_recorded(tmp_path):
    outcome = Outcome("t", [run("a", 0, own=2.5)], [("a", "done", "")], metrics=("own", "none"))
    page = Page(write(outcome, tmp_path))
    assert "No run recorded the metric none." in page.text
    assert [label for label in page.of("div", "aria-label") if label.startswith("Own")] == [
        "Own: a 2.5 at step 1, 2.5 at step 4"
    ]


def test_a_sweep_without_a_step(tmp_path):
    page = Page(write(Outcome("t", [], [("a", "failed", "no luck")]), tmp_path))
    assert "No run has recorded a step yet." in page.text and "a: failed: no luck" in page.text


def test_estimates():
    assert seed_mean([]) is None and seed_mean([None]) is None
    assert seed_mean([3.0, None]) == SeedMean(3.0, None, 1)
    assert seed_mean([1.0, 3.0]) == SeedMean(2.0, pytest.approx(1.0), 2)


def test_last_values_and_curves():
    runs = [run("a", 0), run("a", 2, steps=2)]
    assert runs[0].last("length_mean") == 35 and runs[0].last("none") is None
    assert runs[0].at(4, "length_mean") == 25 and runs[1].at(4, "length_mean") is None
    assert final(runs, "length_mean") == SeedMean(28.5, pytest.approx(6.5), 2)  # of 35, and 22 of the shorter one
    assert [(step, entry.value, entry.seeds) for step, entry in curve(runs, "length_mean")] == [
        (1, 11, 2), (2, 21, 2), (3, 30, 1), (4, 40, 1),
    ]  # fmt: skip


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(step, SeedMean(1.0, None, 1)) for step in range(1, 1001)]
    kept = thinned(points)
    assert len(kept) <= 300 and kept[-1] == points[-1] and thinned(points[:3]) == points[:3]


@pytest.mark.parametrize(
    ("metric", "title", "unit", "shown"),
    [
        ("truncated_share", "Cut at the length limit", "%", "25.0 ± 5.0"),
        ("own_metric", "Own metric", "", "0.25 ± 0.05"),
    ],
)
def test_measures(metric, title, unit, shown):
    measure = measure_of(metric)
    assert (measure.title, measure.unit, measure.show(0.25, 0.05)) == (title, unit, shown)


@pytest.mark.parametrize(
    ("metric", "value", "error", "shown"),
    [
        ("reward_mean", 0.0144, 0.0009, "0.0144 ± 0.0009"),
        ("reward_mean", -0.0144, None, "−0.0144"),  # noqa: RUF001
        ("reward_mean", 0.0, None, "0.00"),
        ("reward_mean", 0.0, 0.0, "0.00 ± 0.00"),
        ("reward_mean", 61.3512, 2.5, "61.35 ± 2.50"),
        ("reward_mean", 0.5, 1e-9, "0.500 ± 0.000"),
        ("reward_mean", 12.34, 0.0001, "12.34 ± 0.00"),
        ("reward_mean", 0.0001, 0.02, "0.00 ± 0.02"),
        ("reward_mean", 2e-12, None, "0.000000000"),
        ("grad_norm", math.inf, None, "inf"),
        ("truncated_share", 0.25, 0.05, "25.0 ± 5.0"),
    ],
)
def test_small_numbers_keep_their_digits(metric, value, error, shown):
    assert measure_of(metric).show(value, error) == shown
