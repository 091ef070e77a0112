"""The HTML report, against synthetic run directories."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections import Counter

import pytest

from fastflow.config.schema import Config
from fastflow.drawing.numbers import number
from fastflow.report import command as report
from fastflow.report.panels import panels
from fastflow.report.tables import training_table
from html_page import Page
from run_directories import EVALUATION, sample_record, step_record, write_run


def test_default_place_and_every_setting(tmp_path):
    run = write_run(tmp_path / "run")
    file = report.write_report(run)
    page = Page(file)
    assert file == run / "report.html"
    assert page.open == []
    for name, section in dataclasses.asdict(Config()).items():
        assert f"<h4>{name}</h4>" in page.source
        for key in section:
            assert re.search(rf"<th scope=\"row\"[^>]*>{key}</th>", page.source), key
    assert page.text.count("models/tiny") == 2  # among the facts and the settings
    assert re.search(r"<tr class=\"changed\"><th[^>]*>path</th><td>models/tiny</td>", page.source)
    assert page.source.count('class="changed"') == 1


def test_nothing_is_loaded_from_outside(tmp_path):
    run = write_run(tmp_path / "run", samples=[sample_record("one")], evaluation=EVALUATION)
    page = Page(report.write_report(run))
    loads = [
        value
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "srcset", "data", "href", "xlink:href")
    ]
    assert loads
    assert all(load.startswith(("#", "data:")) for load in loads)
    assert not re.search(r"@import|url\((?!#)|<script|https?://", page.source)


def test_svg_ids_are_unique_and_resolve_across_runs(tmp_path):
    runs = [(name, write_run(tmp_path / name, evaluation=EVALUATION)) for name in ("one", "two")]
    page = Page(report.write_combined("both", runs, tmp_path / "both.html"))
    ids = Counter(value for _, attributes in page.tags for key, value in attributes.items() if key == "id")
    assert max(ids.values()) == 1
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", page.source))
    assert used <= set(ids)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2 * 17


def test_plots_follow_the_page_and_speak(tmp_path):
    page = Page(report.write_report(write_run(tmp_path / "run")))
    assert "#0102" not in page.source
    assert "var(--blue)" in page.source
    assert page.source.count("<style") == 1  # matplotlib's own would rule the whole page
    spoken = [label for label in page.of("div", "aria-label") if label.startswith("Slope of log")]
    assert spoken == [
        "Slope of log π on log p_base, arrived when it equals alpha: "
        "target alpha 4 at step 1, 4 at step 4; slope 2 at step 1, 5 at step 4"
    ]
    assert not re.search(r"malformed \d", " ".join(page.of("div", "aria-label")))  # null throughout, so left out


def test_rounding_noise_is_not_blown_up(tmp_path):
    """On policy the ratio is 1 but for rounding, and the mean residual with a group's mean as log Z is zero."""
    ratios = {"ratio_p01": 0.999997, "ratio_p50": 1.0, "ratio_p99": 1.000002}
    steps = [step_record(step, residual_mean=-7e-9, **ratios) for step in range(1, 5)]
    page = Page(report.write_report(write_run(tmp_path / "run", steps=steps)))
    ratio, residual = (page.source.split(f"<h4>{title} ")[1] for title in ("Importance ratio", "Residual"))
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", ratio.split("</figure>")[0])
    assert {"0.9995", "1", "1.0005"} <= set(ticks)
    assert "mean <b>0</b>" in residual.split("</figure>")[0]


@pytest.mark.parametrize(("seconds", "text"), [(1.05, "4 s"), (20, "1 min 20 s"), (1000, "1 h 6 min")])
def test_time_of_four_steps(tmp_path, seconds, text):
    steps = [step_record(step, seconds=seconds) for step in range(1, 5)]
    page = Page(report.write_report(write_run(tmp_path / "run", steps=steps)))
    assert f"Time {text} Peak memory" in page.text


def test_evaluation_table(tmp_path):
    page = Page(report.write_report(write_run(tmp_path / "run", evaluation=EVALUATION)))
    assert "Metric Base model Base, low temperature PowerFlow, alpha 4" in page.text
    assert "Accuracy, sampled % 41.0 60.0 +19.0 85.0 +44.0" in page.text
    assert "<b>85.0</b>" in page.source
    assert "<b>0.0</b>" in page.source  # the fewest truncated
    assert "Accuracy, greedy % 70.0 – 90.0 +20.0" in page.text  # noqa: RUF001
    assert "pass@2 % 50.0" in page.text
    assert "Solved within k attempts" in page.text
    assert "First and last steps" not in page.text


def test_first_and_last_steps_stand_in_for_an_evaluation(tmp_path):
    page = Page(report.write_report(write_run(tmp_path / "run")))
    assert "Metric First 2 steps Last 2 steps" in page.text
    assert "Mean length tokens 21.50 23.50 +2.00" in page.text
    assert "Cut at the length limit % 25.0 25.0 +0.0" in page.text


def test_alarms_on_top(tmp_path):
    steps = [step_record(1), *(step_record(k, alarms=[f"truncation: {k}0% of <b>"]) for k in (2, 3)), step_record(4)]
    page = Page(report.write_report(write_run(tmp_path / "run", steps=steps)))
    assert "Alarms Steps 2, 3: truncation: 30% of <b>" in page.text
    assert page.text.index("Alarms") < page.text.index("Metric")
    quiet = Page(report.write_report(write_run(tmp_path / "quiet")))
    assert "There were no alarms." in quiet.text


@pytest.mark.parametrize("step", [step_record(1), dict.fromkeys(step_record(1), None) | {"step": 1}])
def test_one_step_with_values_or_only_nulls(tmp_path, step):
    page = Page(report.write_report(write_run(tmp_path / "run", steps=[step | {"novel": {"a": 1}}])))
    assert "Metric First step Last step" in page.text


def test_combined_report_holds_both_runs(tmp_path):
    runs = [
        ("Reasoning & sums", write_run(tmp_path / "a", evaluation=EVALUATION)),
        ("Stories", write_run(tmp_path / "b")),
    ]
    page = Page(report.write_combined("fastflow demo", runs, tmp_path / "report.html"))
    assert page.of("a", "href") == ["#run0", "#run1"]
    assert "<h2>Reasoning &amp; sums</h2>" in page.source
    assert page.text.index("Before and after") < page.text.index("First and last steps")
    assert page.text.count("Settings") == 2


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    arguments = parser.parse_args([str(write_run(tmp_path / "run")), "--output", str(tmp_path / "page.html")])
    assert not hasattr(arguments, "run")  # the command line keeps its functions under that name
    assert report.run(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5e-7, "5e−7"), (0.00045, "4.5e−4"), (-0.25, "−0.25"), (123.4, "123"), (12345, "12.3k"), (3e6, "3M")],  # noqa: RUF001
)
def test_numbers_for_people(value, text):
    assert number(value) == text


def test_more_digits_for_axes():
    assert [number(value, digits=5) for value in (-1.025, 102.5, 1e4)] == ["−1.025", "102.5", "10k"]  # noqa: RUF001


def test_importing_the_command_is_light():
    heavy = "{'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, fastflow.report.command; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_the_slope_has_a_target_only_where_the_optimum_has_it():
    for objective, told in (
        ("powerflow", "arrived when it equals alpha"),
        ("tb_trajectory", ""),
        ("rl_token", ""),
        ("grpo", ""),
    ):
        (_, [slope, *_]), *_ = panels(objective)
        assert (slope.name, slope.unit) == ("slope", told)


@pytest.mark.parametrize(("alpha", "unit"), [(4.0, "target: 4"), (None, "")])
def test_the_table_names_a_target_only_where_the_run_has_one(alpha, unit):
    rows = training_table([step_record(step, slope=1.5, alpha=alpha) for step in (1, 2)])["rows"]
    assert [row[1] for row in rows if row[0].startswith("Slope")] == [unit]


def test_the_table_has_the_reward_with_its_digits():
    steps = [step_record(1, reward_mean=0.0144), step_record(2, reward_mean=0.5)]
    rows = training_table(steps)["rows"]
    assert rows[0] == ("Reward", "mean", [("0.014", "", False), ("0.500", "+0.486", True)])
    assert "Reward" not in [row[0] for row in training_table([step_record(1), step_record(2)])["rows"]]
