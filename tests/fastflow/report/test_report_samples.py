"""The report's samples: which are chosen, and how their tokens are shown."""

from __future__ import annotations

import re

from fastflow.report import command as report
from html_page import Page
from run_directories import sample_record, step_record, write_run


def card(page: Page, role: str) -> str:
    return page.text.split(f" {role} step ")[1].split(" Prompt ")[0]


def prompts_by_role(page: Page) -> dict[str, str]:
    found = re.findall(
        r"<h4>([^<]*)</h4>\n<ul class=\"labels\">.*?aria-label=\"Prompt[^>]*>([^<]*)<", page.source, re.S
    )
    return dict(found)


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


def test_where_there_is_a_reward_it_chooses(tmp_path):
    samples = [
        sample_record("likely", mean_base_logprob=-0.2, reward=0.5),
        sample_record("low", reward=-1.0),
        sample_record("high", reward=2.0, well_formed=False, length=40),
        sample_record("unlikely", mean_base_logprob=-3.0, reward=0.0),
    ]
    page = Page(report.write_report(write_run(tmp_path / "run", samples=samples)))
    assert prompts_by_role(page) == {
        "Highest reward and longest": "prompt of high", "Lowest reward": "prompt of low"
    }  # fmt: skip
    assert "Best and worst" not in page.text


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
