"""What the report makes of run directories that are incomplete, broken or resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastflow.errors import FastflowError
from fastflow.report import command as report
from html_page import Page
from run_directories import sample_record, step_record, write_run


def test_incomplete_last_line_is_left_out_and_mentioned(tmp_path):
    run = write_run(tmp_path / "run", samples=[sample_record("whole")])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 5, "lo')
    page = Page(report.write_report(run))
    assert "The last line of metrics.jsonl is incomplete" in page.text
    assert "The last line of samples.jsonl is incomplete" in page.text
    assert "Steps 4 " in page.text


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    steps = [step_record(1), step_record(2, length_mean=1000.0), step_record(2), step_record(3)]
    page = Page(report.write_report(write_run(tmp_path / "run", steps=steps)))
    assert "Steps 3 " in page.text
    assert "1000" not in page.text


@pytest.mark.parametrize(
    ("status", "note"),
    [('{"stopped_early": "stopped early after step 4: it is enough"}', True), ('{"stopped_early": null}', False),
     ("[]", False), ("{", False)],
)  # fmt: skip
def test_a_run_that_stopped_early_says_why(tmp_path, status, note):
    run = write_run(tmp_path / "run")
    (run / "status.json").write_text(status)
    page = Page(report.write_report(run))
    assert ("The run stopped early after step 4: it is enough." in page.text) == note


def test_a_run_before_its_last_step_says_of_how_many(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("run: {steps: 12}\n")
    assert "Steps 4 of 12 " in Page(report.write_report(run)).text


def test_missing_optional_files(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    page = Page(report.write_report(run, tmp_path / "new" / "page.html"))
    assert "There is no config.yaml" in page.text
    assert "The run recorded no samples" in page.text


def broken(tmp_path: Path, name: str, text: str) -> Path:
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    return run


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "", "metrics.jsonl holds no complete step yet"),
        ("metrics.jsonl", '{"step": 1, "lo', "metrics.jsonl holds no complete step yet"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', "metrics.jsonl, line 2 is broken"),
        ("metrics.jsonl", '[1]\n{"step": 3}\n', r"metrics.jsonl, line 1 is broken \(not an object with a step\)"),
        ("samples.jsonl", 'x\n{"step": 3}\n', "samples.jsonl, line 1 is broken"),
        ("evaluation.json", "{", "evaluation.json is broken"),
        ("evaluation.json", '{"base": 1}', "evaluation.json must hold named tables"),
        ("config.yaml", "a: [", "config.yaml is broken"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, message):
    with pytest.raises(FastflowError, match=message) as error:
        report.write_report(broken(tmp_path, name, text))
    assert "\n" not in str(error.value)


def test_missing_directory_and_metrics(tmp_path):
    with pytest.raises(FastflowError, match="no-such-run: no such run directory; give"):
        report.write_report(tmp_path / "no-such-run")
    with pytest.raises(FastflowError, match=r"has no metrics.jsonl; give"):
        report.write_report(tmp_path)


def test_output_that_cannot_be_written(tmp_path):
    with pytest.raises(FastflowError, match=r"cannot write to .*choose another place"):
        report.write_report(write_run(tmp_path / "run"), tmp_path)
