"""Graders against tables of responses with the verdict that a careful reader gives."""

import json
import re
import time
from pathlib import Path

import pytest

from fastflow.evaluate.graders import gym
from fastflow.evaluate.graders.algebra.expression import Unreadable, parse
from fastflow.evaluate.graders.algebra.formulas import same_trees
from fastflow.evaluate.graders.algebra.latex import normalise
from fastflow.evaluate.graders.grader import Item, grade, with_gold_as_response
from fastflow.evaluate.graders.verdict import Verdict

TABLES = ("graders.jsonl", "graders_nearby.jsonl", "graders_further.jsonl")


def lines_of(table):
    return [json.loads(line) for line in (Path(__file__).parent / table).read_text().splitlines()]


def item_of(line):
    return Item(line["grader"], line["gold"], line["response"], line.get("choices") or {})


CASES = [line for table in TABLES for line in lines_of(table) if line["kind"] != "time_bomb"]  # those go to the pool
KINDS = sorted({line["kind"] for line in CASES})


@pytest.mark.parametrize("kind", KINDS)
def test_responses_of_a_kind_get_the_verdicts_that_their_lines_say(kind):
    pytest.importorskip("math_verify")
    verdicts = [(line, grade(item_of(line))) for line in CASES if line["kind"] == kind]
    assert not [(line, verdict) for line, verdict in verdicts if (verdict is Verdict.RIGHT) != line["right"]]


REMARKS = (
    "Let me know if this is wrong!",
    "If I made a mistake, please correct me.",
    "A common mistake is to forget the factor 2; then the result is 4.",
    "**Check.** 8 + 4 = 12, and it should be 12.",
    "Note that with n = 3 instead of n = 2, the answer is 27.",
    "This is false for n = 1, so only this works.",
    "The final answer is a whole number of units.",
    "Actually, one can generalise. For 7 terms the result is 19.",
    "Some might say that the answer is 6, but that is wrong.",
    "Wait, let me check again: 3 + 4 = 7. Correct.",
    "I made a mistake earlier but corrected it.",
    "I misread it at first, but now it is right.",
    "I overlooked nothing.",
    "I was wrong to doubt it.",
    "No other value works.",
    "Let me restate it: with n = 3 the answer is 27.",
)
RETRACTIONS = (
    "Wait, that is wrong.",
    "Sorry, I misread the question.",
    "I made a mistake: it should be 987654321.",
    "Actually, the answer is 987654321.",
    "My final answer is 987654321.",
    "No, the final answer is 987654321.",
    "I was wrong. The answer is 987654321.",
    "Let me recheck. 3 + 4 = 7. The answer is 987654321.",
    "Hold on. That should be 987654321.",
    "I apologize, the correct answer is 987654321.",
    "Upon further review, the correct answer is 987654321.",
    "I misread it at first, but it should be 987654321.",
)
BOXED = [
    line
    for line in CASES
    if line["right"] and line["grader"] in ("math", "numeric") and re.search(r"\\boxed\{.*\}[$.]*$", line["response"])
][::7]


@pytest.mark.parametrize("joint", ["\n\n", " "])
@pytest.mark.parametrize("remark", REMARKS)
def test_a_remark_behind_a_box_takes_nothing_back(remark, joint):
    pytest.importorskip("math_verify")
    items = [item_of({**line, "response": f"{line['response']}{joint}{remark}"}) for line in BOXED]
    assert [item for item in items if grade(item) is not Verdict.RIGHT] == []


@pytest.mark.parametrize("joint", ["\n\n", " "])
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_a_box_that_is_taken_back_does_not_count(retraction, joint):
    pytest.importorskip("math_verify")
    items = [item_of({**line, "response": f"{line['response']}{joint}{retraction}"}) for line in BOXED]
    assert [item for item in items if grade(item) is Verdict.RIGHT] == []


@pytest.mark.parametrize("line", [line for line in lines_of("graders.jsonl") if line["gold"]])
def test_each_gold_answer_is_right_as_its_own_response(line):
    pytest.importorskip("math_verify")
    assert grade(with_gold_as_response(item_of(line))) is Verdict.RIGHT


def test_an_empty_gold_is_never_matched():
    for grader in ("math", "numeric", "exact"):
        for response in ("", "\\boxed{}", "\\boxed{0}", "The answer is 0."):
            assert grade(Item(grader, "", response)) is not Verdict.RIGHT


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (r"\sin^2 x + \cos^2 x", "1", True),
        (r"\sqrt{x^2}", "x", False),
        (r"10^{200} + \sqrt{2}", r"10^{200} + \sqrt{3}", False),
        (r"\frac{1}{3^{400}}", r"\frac{1}{3^{401}}", False),
        (r"\sin \pi", "0", True),
        (r"e^{-200}", "0", False),
        (r"\tan 60^\circ", "0", False),
        (r"\sqrt{2} \cdot \sqrt{2} - 2", "0", True),
        (r"\ln(x^2)", r"2\ln x", True),  # where both are real
        (r"\sum_{k=1}^{100} k^2", "338350", True),
        ("2^{127}-1", "170141183460469231731687303715884105727", True),
        ("2^{127}-1", "170141183460469231731687303715884105728", False),
        (r"(1+\sqrt{2})^{50} + (1-\sqrt{2})^{50}", r"\left(1+\sqrt{2}\right)^{50}", False),
    ],
)
def test_formulas_are_compared_by_their_values(left, right, equal):
    assert same_trees(parse(normalise(left)), parse(normalise(right))) is equal


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9}}}", "10**10**10**10", r"(10^{10^{10}})!", r"\binom{10^{12}}{5 \cdot 10^{11}}"]
)
def test_a_tower_is_told_from_a_number_without_computing_it(text):
    assert same_trees(parse("7"), parse(normalise(text))) is False


@pytest.mark.parametrize("text", ["__import__('os')", "lambda x: 6", "f(x", "2 3", "+", "", r"\int_0^1 x dx", "1 2 3"])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(Unreadable):
        parse(normalise(text))


def test_program_text_is_never_executed(tmp_path):
    trap = tmp_path / "executed"
    program = f"__import__('pathlib').Path('{trap}').touch()"
    for grader in ("math", "numeric", "exact"):
        for response in (f"\\boxed{{{program}}}", f"The answer is {program}", program):
            assert grade(Item(grader, "6", response)) is not Verdict.RIGHT
    assert not trap.exists()


@pytest.mark.parametrize(
    "loop",
    [
        "The answer is 5. ",
        "Answer: A, ",
        "答案是",
        "\\boxed{",
        "\\boxed{5} ",
        "<think>",
        "{",
        "not A or ",
        "so ",
        "1.234",
        "\n",
        ".",
        "**\n",
        "answer\n",
        "so, so ",
        "but ",
        "change to ",
        "1",
        "123 ",
        "1,000",
        "wait, ",
        "it should be ",
        "I made a mistake earlier but ",
        "no wait ",
        "let me recheck ",
    ],
)
def test_responses_that_loop_cost_little(loop):
    for grader in ("math", "numeric", "choice", "exact"):
        choices = {"A": "red", "B": "green"} if grader == "choice" else {}
        start = time.monotonic()
        grade(Item(grader, "B" if choices else "7", loop * (50_000 // len(loop)), choices))
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("text", ["\\text{A}~x", "\\text{A~", "x~y", "5~\\text{m}x", "_~x"])
def test_blanks_cost_little(text):
    response = f"The answer is {text.replace('~', ' ' * 1900)}"
    for grader in ("math", "numeric", "exact"):
        start = time.monotonic()
        grade(Item(grader, "7", response))
        assert time.monotonic() - start < 1


def test_words_between_blanks_cost_little():
    start = time.monotonic()
    normalise("\\text{A}" + " " * 1900 + "x")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("behind", "answer"),
    [
        ("Wait, that is wrong.", ""),
        ("Wait, that is wrong. The answer is 7.", "7"),
        ("Wait, that is wrong. The answer is True.", "True"),
        ("Wait, that is wrong.\n<answer>\n1 2\n3 4\n</answer>", "1 2\n3 4"),
        ("I checked it twice.", "6"),
    ],
)
def test_the_verifier_gets_no_answer_that_was_taken_back(behind, answer):
    assert gym.extract(f"<answer>5</answer> The answer is 5. So $\\boxed{{6}}$. {behind}") == answer


def test_letters_that_are_no_list_cost_little():
    start = time.monotonic()
    assert grade(Item("choice", "B", "A B C D " * 6 + "x", {"A": "red", "B": "green"})) is Verdict.UNPARSED
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "text", ["a" * 1900, "{a}" * 600, "1+" * 900 + "1", "5!" + "!" * 900, "5" + "%" * 900, "-" * 900]
)
def test_a_formula_of_many_operations_is_no_recursion_error(text):
    with pytest.raises(Unreadable):
        parse(normalise(text))
