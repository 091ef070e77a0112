"""Reading the answers that a model writes with their probabilities."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.evaluate.methods.verbalized import Stated, choose, instruction, parse, verbalized_sampling
from fastflow.rollout.sampler import Request, SamplingParams

PLAIN = '{"responses": [{"text": "4", "probability": 0.7}, {"text": "5", "probability": 0.3}]}'
TWO = [Stated("4", 0.7), Stated("5", 0.3)]


@pytest.mark.parametrize(
    "written",
    [
        PLAIN,
        f"Sure, here it is:\n```json\n{PLAIN}\n```\nHope that helps [1].",
        '[{"text": "4", "probability": 0.7}, {"text": "5", "probability": 0.3}]',
        '{"answers": [{"Response": "4", "prob": "70%"}, {"Answer": 5, "p": 30}]}',
        '{"text": "4", "probability": 0.7}\n{"text": "5", "probability": 0.3}',
        '{"responses": [{"text": "4", "probability": 0.7}, {"text": "5", "probability": 0.3}, {"text": "6", "prob',
        '{"note": "none", "responses": [{"text": "4", "probability": 0.7}, {"text": "5", "probability": 0.3}, 6]}',
        '{"responses": [{"text": "4", "probability": 0.7} {"text": "5", "probability": 0.3}]}',
    ],
)
def test_answers_are_read_leniently(written):
    assert [(entry.text, pytest.approx(entry.probability)) for entry in parse(written)] == [
        (entry.text, entry.probability) for entry in TWO
    ]


def test_latex_keeps_its_backslashes_and_new_lines_stay_new_lines():
    written = r'{"responses": [{"text": "So \frac{1}{2}\nThe answer: \boxed{4} \times \sqrt{2}", "probability": 1}]}'
    (entry,) = parse(written)
    assert entry.text == "So \\frac{1}{2}\nThe answer: \\boxed{4} \\times \\sqrt{2}"
    doubled = written.replace("\\", "\\\\").replace("\\\\n", "\\n")
    assert parse(doubled) == [entry]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"il mare,\ne il vento", "il mare,\ne il vento"),
        (r"il mare\ne il vento", "il mare\ne il vento"),
        (r"\to", "\to"),
        (r"$x \ne y$ as x\to 0, $\nu$", r"$x \ne y$ as x\to 0, $\nu$"),
    ],
)
def test_a_line_that_begins_with_e_is_no_latex(written, text):
    (entry,) = parse(f'{{"text": "{written}", "probability": 1}}')
    assert entry.text == text


@pytest.mark.parametrize(
    "loop",
    ["[", "{", '{"a":', "[1,", "[[1],", '["a", ', '{"a" ', '["', '{"text": "a", "probability": ', "\\frac{[", " "],
)
@pytest.mark.parametrize("before", ["", '"text": "a", "p":'])
def test_what_a_model_repeats_without_end_costs_little(loop, before):
    start = time.monotonic()
    parse(before + loop * (100_000 // len(loop)))
    assert time.monotonic() - start < 2


def test_formulas_before_the_list_do_not_hide_it():
    before = r"We have \frac{1}{2}, the interval [x, y], the set {a} and [0] and a 5\" disk. "
    assert parse(before * 300 + PLAIN) == TWO


def test_what_holds_no_answers_gives_none():
    for written in (
        "",
        "The answer is 4.",
        "{",
        "[1, 2]",
        '{"responses": []}',
        '{"text": ""}',
        "[[[[",
        '{"text": true}',
    ):
        assert parse(written) == []


@given(
    pairs=st.lists(st.tuples(st.text(min_size=1), st.floats(0, 1)), min_size=1, max_size=6),
    before=st.sampled_from(["", "Here:\n", "```json\n"]),
)
@settings(max_examples=80, deadline=None)
def test_whatever_is_written_as_json_is_read_back(pairs, before):
    """But for a backslash, and the form feeds and backspaces that JSON writes as the beginning of \\frac and \\beta."""
    pairs = [(text.translate(dict.fromkeys(map(ord, "\\\b\f"), "/")), share) for text, share in pairs if text.strip()]
    pairs = pairs or [("a", 1.0)]
    written = json.dumps({"responses": [{"text": text, "probability": share} for text, share in pairs]})
    assert [entry.text for entry in parse(before + written)] == [text for text, _ in pairs]


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_without_an_error(written):
    for entry in parse(written + '{"text": "' + written):
        assert 0 <= entry.probability <= 1


def test_answers_are_drawn_by_their_probabilities():
    draws = np.array([choose(TWO, seed) for seed in range(2000)])
    assert draws.mean() == pytest.approx(0.3, abs=0.04)
    even = np.array([choose([Stated("a", 0.0), Stated("b", 0.0)], seed) for seed in range(2000)])
    assert even.mean() == pytest.approx(0.5, abs=0.04)
    assert choose(TWO, 5) == choose(TWO, 5)


@pytest.mark.parametrize(
    ("numbers", "shares"),
    [
        ([40, 30, 20, 9, 1], [0.4, 0.3, 0.2, 0.09, 0.01]),
        ([99, 0.5, 0.5], [0.99, 0.005, 0.005]),
        ([0.5, 0.4, 0.1], [0.5, 0.4, 0.1]),
        ([1], [1]),
        (["70%", 29, 1], [0.7, 0.29, 0.01]),
        (["0.5 %", 0.9], [0.005, 0.9]),
        ([1e308, 1e308], [1, 1]),
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_list_is_of_percentages_as_a_whole(numbers, shares, is_cut):
    written = json.dumps({"responses": [{"text": "a", "probability": number} for number in numbers]})
    found = parse(written.replace("}, {", "} {")[:-2] if is_cut else written)
    assert [entry.probability for entry in found] == pytest.approx(shares)
    assert 0 <= choose(found, 1) < len(found)


class Writer:
    """Stands in for a sampler and a tokenizer: each response is one text, 40 tokens of half a nat."""

    def __init__(self, written):
        self.written = written

    def sample(self, requests, params):
        ids, logprobs = np.arange(40), np.full(40, -0.5, dtype=np.float32)
        return [Group(one.prompt, tuple(Trajectory(ids, logprobs, "stop") for _ in one.seeds)) for one in requests]

    def of(self, ids, *, naming=""):
        return self.written


def drawn(written):
    writer = Writer(written)
    method = verbalized_sampling(writer, writer, SamplingParams(), count=len)
    return method(None, [], [Request(Prompt(np.array([1])), (3,))])[0][0]


def test_an_answer_out_of_a_list_has_not_the_tokens_of_the_list():
    answer = drawn('{"responses": [{"text": "yes", "probability": 1.0}]}')
    assert (answer.response, answer.tokens, answer.sampled_tokens) == ("yes", 3, 40)
    assert answer.logprob is None and answer.response_ids == ()


def test_what_cannot_be_read_keeps_its_tokens():
    answer = drawn("yes")
    assert (answer.response, answer.tokens, answer.logprob) == ("yes", 40, -20.0)
    assert answer.response_ids == tuple(range(40))


def test_the_instruction_names_number_and_tail():
    assert "Give 5 different" in instruction(5, None) and "below" not in instruction(5, None)
    assert "below 0.1" in instruction(3, 0.1)
