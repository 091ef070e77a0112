"""Evaluations on the page: found, compared in pairs, shown side by side, escaped, within 5 MB."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from evaluations import SETTINGS, row, rows_of, write_evaluation
from fastflow.errors import FastflowError
from fastflow.report import command as report
from fastflow.report import page as report_page
from fastflow.report.comparison import describe_settings
from fastflow.report.coverage import compare_words, drawn_ks
from fastflow.report.evaluations import find_evaluations, read_evaluation, short_names
from fastflow.report.paired import Difference, measure_of, paired
from html_page import Page
from run_directories import write_run

pytest.importorskip("pyarrow")
BASE = rows_of("RRww", "wRww", "wwww", "Rwww")
POLICY = rows_of("RRRR", "RRRR", "wwww", "RRRw", response="a sharper answer", tokens=7)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("of") / "math", {"runs/base": BASE, "runs/alpha_4": POLICY})


@pytest.fixture(scope="module")
def page(evaluation) -> Page:
    return Page(report.write_evaluation(evaluation))


def test_the_table_has_errors_and_paired_differences(page):
    assert "Measure base alpha_4" in page.text
    assert "avg@4 25.0 ± 10.2 % 68.8 ± 23.7 % +43.8" in page.text
    assert "tokens 11.5 ± 0.0 7.0 ± 0.0 −4.5 " in page.text and "−4.5 (" not in page.text  # noqa: RUF001
    assert "less the first's" not in page.text  # each cell says it


def changed(directory: Path, change) -> Page:
    """The page of an evaluation after a change of its results."""
    results = json.loads((directory / "results.json").read_text())
    change(results)
    (directory / "results.json").write_text(json.dumps(results))
    return Page(report.write_evaluation(directory))


def test_a_difference_that_no_cell_says_keeps_its_row(tmp_path):
    def add_diversity(results):
        for model in results["tasks"][0]["models"]:
            model["scores"]["diversity"] = {"rouge_l": {"value": 0.5, "error": 0.1}}
            model["differences"] = {"rouge_l": {"value": 0.25, "error": 0.1, "low": 0.05, "high": 0.45}}

    page = changed(write_evaluation(tmp_path / "e", {"base": BASE, "policy": POLICY}), add_diversity)
    assert "ROUGE-L redundancy less the first's, 95 % +0.250 (+0.050 to +0.450)" in page.text
    assert "avg@4 less the first's" not in page.text


def test_a_creative_task_offers_no_order_by_what_is_right(tmp_path, page):
    def make_creative(results):
        results["settings"]["judge"] = {"model": "referee", "votes": 2}
        results["tasks"][0]["kind"] = "creative"

    creative = changed(write_evaluation(tmp_path / "e", {"base": BASE, "policy": POLICY}), make_creative)
    for text in ("gains most", "fewest right", "Bands: 95 %"):
        assert text in page.text and text not in creative.text
    assert "longest response" in creative.text
    assert "judge model referee, votes 2" in creative.text


@pytest.mark.parametrize("heading", ["avg@4", "pass@2", "pass@4", "maj@4", "tokens", "cut off", "well-formed"])
def test_a_difference_is_the_mean_over_prompts_of_differences(heading):
    from fastflow.evaluate import estimates, scores

    measure, _ = measure_of(heading)
    found = paired(POLICY, BASE, measure)
    ours, theirs = ([measure(group) for group in scores.by_prompt(rows)] for rows in (POLICY, list(reversed(BASE))))
    expected = estimates.estimate([one - other for one, other in zip(ours, theirs, strict=True)])
    assert found.value == pytest.approx(expected["value"])
    if expected["error"]:
        assert found.high - found.low == pytest.approx(2 * 1.959964 * expected["error"])
    else:
        assert found.low is None and found.high is None
    if heading == "avg@4":
        named = scores.difference(POLICY, BASE)
        assert (found.value, found.low, found.high) == pytest.approx((named["value"], named["low"], named["high"]))


@pytest.mark.parametrize(("before", "after"), [("wrong", "right"), ("right", "right")])
def test_prompts_that_all_differ_alike_have_no_interval(before, after):
    ours, theirs = ([row | {"verdict": verdict} for row in rows] for rows, verdict in ((POLICY, after), (BASE, before)))
    found = paired(ours, theirs, measure_of("avg@4")[0])
    assert (found.value, found.low, found.high) == (float(before != after), None, None)
    assert not found.leaves_out_zero
    assert found.show(100) == ("+100.0" if before != after else "+0.0")


def test_a_row_of_another_kind_has_no_paired_difference():
    assert measure_of("unparsed") is None and measure_of("pass@all") is None


def crossing(*gaps: float, last: Difference | None = None) -> str:
    return compare_words("policy", "base", list(range(1, len(gaps) + 1)), gaps, last)


def test_the_words_about_coverage():
    assert crossing(0.0, 0.0) == "policy and base solve equally much at every k from 1 to 2."
    assert crossing(0.3, 0.2) == (
        "The curves do not cross: policy solves more at every k. Its lead is 30 points at k = 1 and 20 points at k = 2."
    )
    assert "base solves more, or equally much, at every k" in crossing(-0.3, 0.0)
    lost = crossing(0.3, 0.1, -0.2, -0.4, last=Difference(-0.4, -0.5, -0.3))
    assert lost == (
        "The curves cross between k = 2 and k = 3; from k = 3 on, base solves more, at k = 4 by 40 points "
        "(95 %: 30 to 50). The interval leaves out 0: policy lost coverage against base."
    )
    assert "cross 2 times, between k = 1 and k = 2, between k = 3 and k = 4" in crossing(0.1, -0.1, -0.1, 0.1)
    assert "between k = 1 and k = 3" in crossing(0.1, 0.0, -0.1)  # they touch at 2
    assert "neither a loss nor a gain" in crossing(0.3, -0.1, last=Difference(-0.1, -0.3, 0.1))
    assert crossing(0.2, 0.2, last=Difference(0.2, 0.1, 0.3)).endswith("policy lost no coverage at k = 2.")


def test_the_page_says_what_its_curves_show(tmp_path):
    base, policy = rows_of("Rwww", "Rwww", "Rwww", "Rwww"), rows_of("RRRR", "RRRR", "wwww", "wwww")
    page = Page(report.write_evaluation(write_evaluation(tmp_path / "e", {"base": base, "policy": policy})))
    assert (
        "The curves cross between k = 1 and k = 3; from k = 3 on, base solves more, at k = 4 by 50 points" in page.text
    )
    (spoken,) = [text for text in page.of("div", "aria-label") if text.startswith("Solved within")]
    assert "base 25 % at k = 1, 100 % at k = 4; policy 50 % at k = 1, 50 % at k = 4" in spoken


def test_many_k_are_thinned_to_both_ends():
    ks = drawn_ks(list(range(1, 4097)))
    assert len(ks) <= 64 and ks[:4] == [1, 2, 3, 4] and ks[-1] == 4096 and ks == sorted(set(ks))


def test_histograms_and_what_is_left_out_of_them(page, tmp_path):
    assert any(text.startswith("Response length, tokens") for text in page.of("div", "aria-label"))
    (surprise,) = [text for text in page.of("div", "aria-label") if text.startswith("Surprise per token")]
    mean = sum((5 + sample) / (10 + sample) for sample in range(4)) / 4
    assert f"base mean {mean:.3g}" in surprise
    partly = [one | {"logprob": one["logprob"] if one["sample"] else None} for one in POLICY]
    silent = write_evaluation(tmp_path / "e", {"base": BASE, "policy": partly})
    told = Page(report.write_evaluation(silent))
    assert "surprise is left out: not all kept responses of policy carry log-probabilities" in told.text
    assert "policy" not in next(text for text in told.of("div", "aria-label") if text.startswith("Surprise per token"))


def test_the_entropy_of_plain_samples_is_that_of_a_runs_metrics(tmp_path, monkeypatch):
    """Sum over sum, as `token_entropy`: here 5 nats in 12 tokens, where the mean of the ratios is 1.05."""
    rows = [row(0, 0, right=True, tokens=10, logprob=-1.0), row(0, 1, right=False, tokens=2, logprob=-4.0)]
    told = Page(report.write_evaluation(write_evaluation(tmp_path / "plain", {"base": rows})))
    assert "the sum of the lengths of all responses: base 0.417 nats" in told.text
    assert any("Surprise per token" in text and "base mean 1.05" in text for text in told.of("div", "aria-label"))
    monkeypatch.setitem(SETTINGS, "method", {"name": "best_of_n", "candidates": 16})
    told = Page(report.write_evaluation(write_evaluation(tmp_path / "chosen", {"base": rows})))
    assert "Entropy per token" not in told.text and "Surprise per token" in told.source


def test_the_same_prompt_side_by_side(page):
    cards = page.source.split('<article class="sample card"')[1:]
    assert len(cards) == 4
    assert re.search(r"<h6>base <small>1 of 4 right</small></h6>.*<h6>alpha_4 <small>4 of 4 right", cards[1], re.S)
    assert "question 1?" in cards[1] and "Gold answer: <b>7</b>" in cards[1]
    assert "response 1.0" in cards[1] and "a sharper answer" in cards[1] and "answer <b>8</b>" in cards[1]
    assert [re.search('data-gain="([^"]*)"', card)[1] for card in cards] == ["0.5000", "0.7500", "0.0000", "0.5000"]
    assert "This page shows all of 4 prompts, and all of 4 responses of each model to a prompt" in page.text
    assert "kept in the folder math: responses/sums-0-0123456789ab.parquet, responses/sums-1" in page.text


def test_it_is_a_plain_page_without_the_script(page):
    script = (Path(report.__file__).parent / "page.js").read_text()
    assert re.findall(r"<script>(.*?)</script>", page.source, re.S) == [script]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    tools = [attributes for tag, attributes in page.tags if attributes.get("class") == "tools"]
    assert all("hidden" in attributes for attributes in tools) and len(tools) == 1
    assert not any("hidden" in attributes for _, attributes in page.tags if attributes.get("class") == "sample card")
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)


def test_search_and_sort_read_what_the_cards_carry():
    folder = Path(report.__file__).parent
    script, card = (folder / "page.js").read_text(), (folder / "card.html.j2").read_text()
    assert set(re.findall(r'value\(\w, "(\w+)"\)', script)) <= set(re.findall(r"data-(\w+)=", card))
    options = re.findall(r'<option value="(\w+)"', (folder / "evaluation.html.j2").read_text())
    assert options == re.findall(r"^    (\w+): \(", script, re.M)


def test_the_page_holds_5_mb_and_says_what_it_left_out(tmp_path):
    long = "<&>é" * 2000  # each sign is several bytes in the page
    many = [row(question, sample, right=False, response=long, prompt=f"p{question}")
            for question in range(250) for sample in range(4)]  # fmt: skip
    first = write_evaluation(tmp_path / "many" / "a", {"base": many, "policy": many}, task="long")
    write_evaluation(tmp_path / "many" / "b", {"base": BASE, "policy": POLICY})
    run = write_run(tmp_path / "run")
    file = report.write_report(run, tmp_path / "page.html", [tmp_path / "many"])
    assert 4_000_000 < file.stat().st_size <= report_page.MOST_BYTES == 5_000_000
    page = Page(file)
    shown, samples = re.search(
        r"This page shows (\d+) of 250 prompts, evenly spread over the task, and the first (\d) of 4", page.text
    ).groups()
    assert samples == "1" and page.source.count(f'id="{"evaluation0-task0"}-prompt-') == int(shown) > 50
    assert "4000 characters left out" in page.text and "of texts with more than 4000 characters the first" in page.text
    assert "This page shows all of 4 prompts, and all of 4 responses" in page.text  # the small one is whole
    assert str(first.name) in page.text


def test_fewer_responses_before_fewer_prompts(tmp_path, monkeypatch):
    rows = [row(question, sample, right=False, response="x" * 3000) for question in range(30) for sample in range(4)]
    directory = write_evaluation(tmp_path / "e", {"base": rows, "policy": rows})
    whole = report.write_evaluation(directory).stat().st_size
    monkeypatch.setattr(report_page, "MOST_BYTES", whole - 200_000)
    page = Page(report.write_evaluation(directory))
    assert "This page shows all of 30 prompts, and the first 2 of 4 responses" in page.text


def test_evaluations_of_a_run_and_those_that_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    steps = {"step 0": BASE, "step 10": POLICY, "step 20": POLICY}
    write_evaluation(run / "evaluations", steps, steps=True)
    other = write_evaluation(tmp_path / "other", {"base": BASE}, task="aime")
    page = Page(report.write_report(run, None, [other, run / "evaluations"]))
    assert page.of("a", "href") == ["#run0", "#evaluation0", "#evaluation0-task0", "#evaluation1", "#evaluation1-task0"]
    assert "Measure step 0 step 10 step 20" in page.text
    assert any(text.startswith("Over the training: avg@4 25 % at step 0, 68.8 % at step 20") for text in
               page.of("div", "aria-label"))  # fmt: skip
    assert len(re.findall(r"<h6>step 10 ", page.source)) == 0  # the first and the last stand side by side
    assert len(re.findall(r"<h6>step 20 ", page.source)) == 4


def test_of_many_steps_the_table_shows_the_first_and_the_last(tmp_path):
    steps = {f"step {10 * number}": BASE for number in range(12)}
    page = Page(report.write_evaluation(write_evaluation(tmp_path / "e", steps, steps=True)))
    assert "Measure step 0 step 50 step 60" in page.text
    assert "4 models in between left out; results.json has them." in page.text


def test_the_command_takes_a_run_or_an_evaluation(tmp_path, capsys, evaluation):
    import argparse

    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    run = write_run(tmp_path / "run")
    for arguments in ([str(run), "--evaluation", str(evaluation)], [str(evaluation)]):
        output = tmp_path / f"{len(arguments)}.html"
        assert report.run(parser.parse_args([*arguments, "--output", str(output)])) == 0
        assert "avg@4" in Page(output).text
    assert capsys.readouterr().out.count(".html") == 2


def test_results_that_name_no_files_show_their_scores(tmp_path):
    directory = write_evaluation(tmp_path / "e", {"base": BASE, "policy": POLICY}, names_files=False)
    page = Page(report.write_evaluation(directory))
    assert "no responses of base, policy are there" in page.text
    assert "avg@4 less the first's, 95 %" in page.text and "avg@4 25.0 ± 10.2 %" in page.text
    assert "<script" not in page.source


def test_without_pyarrow_the_page_names_the_extra(evaluation, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    page = Page(report.write_evaluation(evaluation, tmp_path / "page.html"))
    assert "Sums: the responses are left out" in page.text and "fastflow[eval]" in page.text


@pytest.mark.parametrize("name", ["../outside.parquet", "/etc/passwd", "", 3, "nothing.parquet", "a\0b"])
def test_files_are_read_in_the_directory_alone(tmp_path, name):
    directory = write_evaluation(tmp_path / "e", {"base": BASE})
    (tmp_path / "outside.parquet").write_bytes((directory / "responses" / "sums-0-0123456789ab.parquet").read_bytes())
    tree = json.loads((directory / "results.json").read_text())
    tree["tasks"][0]["models"][0]["responses"] = name
    (directory / "results.json").write_text(json.dumps(tree))
    assert read_evaluation(directory).tasks[0].subjects[0].file is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json is broken"),
        ("[]", "is no result of fastflow evaluate"),
        ('{"title": "a sweep", "groups": {}}', "is no result of fastflow evaluate; .*a sweep has its own page"),
        ('{"tasks": [{"name": "a", "models": []}]}', "names a task without scores"),
        ('{"tasks": [{"name": "a", "models": [{"name": "b", "scores": {}}]}]}', "broken at the task a"),
    ],
)
def test_broken_results_are_named(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(FastflowError, match=message) as error:
        report.write_evaluation(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_file_of_responses_is_named(tmp_path):
    directory = write_evaluation(tmp_path / "e", {"base": BASE})
    (directory / "responses" / "sums-0-0123456789ab.parquet").write_text("no parquet")
    with pytest.raises(FastflowError, match=r"cannot read .*parquet.*remove it and evaluate again"):
        report.write_evaluation(directory)


def test_directories_without_an_evaluation_are_refused(tmp_path):
    with pytest.raises(FastflowError, match=r"holds no results.json; give the --output"):
        find_evaluations([tmp_path])
    with pytest.raises(FastflowError, match="no such directory"):
        find_evaluations([tmp_path / "nothing"])


def test_names_leave_out_common_folders():
    assert short_names(["runs/base", "runs/alpha_4/policy"]) == ["base", "alpha_4/policy"]
    assert short_names(["runs/base"]) == ["runs/base"]
    assert short_names(["a", "a/b"]) == ["a", "a/b"]


@pytest.mark.parametrize(("limit", "shown"), [(0, []), (20, [("limit", "20")])])
def test_a_limit_is_shown_only_where_there_is_one(tmp_path, limit, shown):
    evaluation = read_evaluation(write_evaluation(tmp_path / "e", {"base": BASE}))
    found = describe_settings(replace(evaluation, settings=evaluation.settings | {"limit": limit}))
    assert [entry for entry in found if entry[0] == "limit"] == shown
