"""The HTML report, against synthetic run directories."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastflow import report
from fastflow.config import Config, ModelConfig
from fastflow.errors import FastflowError

EVALUATION = {
    "base": {"accuracy": 0.41, "greedy_accuracy": 0.7, "truncated_share": 0.02, "pass_at": {"1": 0.41, "2": 0.5}},
    "low_temperature": {"accuracy": 0.6, "truncated_share": 0.01, "pass_at": {"1": 0.6, "2": 0.66}},
    "alpha_4": {"accuracy": 0.85, "greedy_accuracy": 0.9, "truncated_share": 0.0, "pass_at": {"1": 0.85, "2": 0.9}},
}


def step_record(step: int, **changes: Any) -> dict[str, Any]:
    record = {
        "loss": 1 / step, "residual_mean": 0.1, "residual_std": 0.5, "log_z": -1.0, "length_mean": 20.0 + step,
        "length_p10": 10, "length_p50": 20, "length_p90": 30, "length_max": 48, "truncated_share": 0.25,
        "malformed_share": None, "token_entropy": 0.75, "sequence_entropy": 15.0, "logprob_mean": -0.5,
        "base_logprob_mean": -0.75, "ratio_p01": 0.8, "ratio_p50": 1.0, "ratio_p99": 1.2, "clipped_share": 0.1,
        "effective_sample_size": 0.9, "slope": 1.0 + step, "alpha": 4.0, "grad_norm": 2.0, "lr": 5e-7,
        "repetition": 0.01, "seconds_sample": 1.0, "seconds_score": 0.25, "seconds_train": 0.5, "seconds": 2.0,
        "sample_tokens_per_second": 2e4, "score_tokens_per_second": 8e4, "train_tokens_per_second": 4e4,
        "peak_memory_bytes": 2**30, "microbatches": 2, "tokens": 4000, "responses": 64, "alarms": [],
    }  # fmt: skip
    return {"step": step, **record, **changes}


def sample_record(name: str, **changes: Any) -> dict[str, Any]:
    record = {
        "step": 4, "prompt": f"prompt of {name}", "response": f"{name} text", "tokens": [name, " text"],
        "logprobs": [-0.5, -4.0], "base_logprobs": [-2.0, -0.25], "length": 2, "finish_reason": "stop",
        "well_formed": True, "residual": 0.125, "weight": 1.0, "mean_logprob": -1.0, "mean_base_logprob": -1.0,
    }  # fmt: skip
    return {**record, **changes}


def write_run(
    directory: Path, *, steps: list[dict] | None = None, samples: list[dict] | None = None, evaluation: Any = None
) -> Path:
    directory.mkdir()
    steps = [step_record(step) for step in range(1, 5)] if steps is None else steps
    settings = dataclasses.asdict(Config(model=ModelConfig(path="models/tiny")))
    (directory / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    if samples is not None:
        (directory / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in samples))
    if evaluation is not None:
        (directory / "evaluation.json").write_text(json.dumps(evaluation))
    return directory


class Page(HTMLParser):
    """Tags with their attributes, the tags left open, and the visible text."""

    VOID = ("meta", "link", "br", "path", "use", "rect")

    def __init__(self, file: Path):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(self.source)
        self.text = " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data + ("" if "span" in self.open[-1:] else " "))

    def of(self, tag: str, attribute: str) -> list[str]:
        return [attributes[attribute] for name, attributes in self.tags if name == tag and attribute in attributes]


def card(page: Page, role: str) -> str:
    return page.text.split(f" {role} step ")[1].split(" Prompt ")[0]


def prompts_by_role(page: Page) -> dict[str, str]:
    found = re.findall(
        r"<h4>([^<]*)</h4>\n<ul class=\"labels\">.*?aria-label=\"Prompt[^>]*>([^<]*)<", page.source, re.S
    )
    return dict(found)


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
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2 * 16


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


def test_samples_are_escaped_and_faithful(tmp_path):
    evil = sample_record(
        "x", prompt="<script>alert(1)</script>", response="", tokens=["<script>", "  two\n", "\x00", "\ud83d"],
        logprobs=[-0.5, -4.0, -1.0, None], base_logprobs=[-2.0, -0.25, -1.0, -1.0],
    )  # fmt: skip
    page = Page(report.write_report(write_run(tmp_path / "run", samples=[evil])))
    assert "<script" not in page.source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.source
    told = "log π −0.50, log p_base −2.00, difference +1.50"  # noqa: RUF001
    assert f'<span class="u4" title="{told}">&lt;script&gt;</span><span class="d8 nl"' in page.source
    assert ">  two\n</span>" in page.source
    assert ">␀</span>" in page.source
    assert 'title="log-probs not recorded">�</span>' in page.source
    assert "break-spaces" in page.source


def test_best_worst_and_longest_of_the_last_dump(tmp_path):
    samples = [
        sample_record("old", step=1, mean_base_logprob=0.0, length=999),
        sample_record("plain"),
        sample_record("malformed", mean_base_logprob=-0.1, well_formed=False),
        sample_record("likely", mean_base_logprob=-0.2),
        sample_record("unlikely", mean_base_logprob=-3.0),
        sample_record("long", length=40, finish_reason="length"),
    ]
    page = Page(report.write_report(write_run(tmp_path / "run", samples=samples)))
    assert prompts_by_role(page) == {
        "Best": "prompt of likely", "Worst": "prompt of unlikely", "Longest": "prompt of long"
    }  # fmt: skip
    assert "length 40 tokens cut at the length limit well-formed" in card(page, "Longest")
    assert "residual 0.125" in card(page, "Best")


def test_one_sample_of_several_roles_is_shown_once(tmp_path):
    page = Page(report.write_report(write_run(tmp_path / "run", samples=[sample_record("only", well_formed=None)])))
    assert prompts_by_role(page) == {"Best and worst and longest": "prompt of only"}


def test_long_responses_stay_small(tmp_path):
    count = 20_000
    long = sample_record("x", tokens=["a"] * count, logprobs=[-1.0] * count, base_logprobs=[-2.0] * count, length=count)
    steps = [step_record(step) for step in range(1, 2001)]
    file = report.write_report(write_run(tmp_path / "run", steps=steps, samples=[long]))
    page = Page(file)
    assert file.stat().st_size < 700_000
    assert "… 19000 tokens left out …" in page.text
    assert "Each point is the mean of about 7 steps" in page.text


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
    assert "No alarms were raised." in quiet.text


@pytest.mark.parametrize("step", [step_record(1), dict.fromkeys(step_record(1), None) | {"step": 1}])
def test_one_step_with_values_or_only_nulls(tmp_path, step):
    page = Page(report.write_report(write_run(tmp_path / "run", steps=[step | {"novel": {"a": 1}}])))
    assert "Metric First step Last step" in page.text


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


def test_missing_optional_files(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    page = Page(report.write_report(run, tmp_path / "new" / "page.html"))
    assert "There is no config.yaml" in page.text
    assert "No samples were recorded" in page.text


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
    with pytest.raises(FastflowError, match=r"cannot write .*choose another --output"):
        report.write_report(write_run(tmp_path / "run"), tmp_path)


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
    assert report.number(value) == text


def test_more_digits_for_axes():
    assert [report.number(value, digits=5) for value in (-1.025, 102.5, 1e4)] == ["−1.025", "102.5", "10k"]  # noqa: RUF001


def test_importing_the_command_is_light():
    heavy = "{'matplotlib', 'jinja2', 'yaml', 'torch', 'numpy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, fastflow.report; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
