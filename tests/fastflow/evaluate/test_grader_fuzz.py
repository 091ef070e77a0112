"""Ten thousand answers that nobody would write: none hangs, none raises, none is right by accident."""

import random
import time

import pytest

from fastflow.evaluate.graders.grader import Item, grade
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

PIECES = [
    "\\frac", "{", "}", "(", ")", "[", "]", "\\sqrt", "^", "_", "1", "2", "17", "0.5", "x", "y", "n", "e", "i", "\\pi",
    "+", "-", "*", "/", "=", "<", "\\le", "\\ge", "\\cup", "\\pm", ",", ";", ":", "!", "%", "\\%", "^\\circ", "°", "|",
    "\\text{ cm}", "\\text{ or }", "\\text{", "\\{", "\\}", "\\infty", "\\in", "\\mathbb{R}", "\\boxed{", "$", "\\(",
    "\\left(", "\\right)", "\\sin", "\\ln", "\\sum_{k=1}^{9}", "\\binom{5}{2}", "\\begin{pmatrix}", "\\end{pmatrix}",
    "\\\\", "&", "**", "__", "import", "the answer is", "Answer:", "A", "B", "C", "(D)", "\n", " ", "½", "√", "−", "，",
    "答案是", "个", "<think>", "</think>", "not", "\\overline{3}", "\\cdot", "\\times 10^{3}", "\x00", "\ud83d\ude00",
    "\\", "'", '"', "...", "\\ldots", "\\approx", "_5", "_{7}", "\\int_0^1", "\\lim", "dx", "9^{9^{9}}", "!!", "1e999",
]  # fmt: skip
GOLDS = ["1234567", "\\frac{355}{113}", "(17, -3)", "[2, 9)", "x \\ge 31", "\\sqrt{47}", "\\{4, 6, 11\\}", "3x^3 - 41"]
CHOICES = {"A": "red", "B": "green", "C": "blue", "D": "none of these"}
COUNT = 10_000


def fuzzed(draw, number):
    text = "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 14)))
    text = draw.choice(("{0}", "\\boxed{{{0}}}", "The answer is {0}.", "**Answer: {0}**", "#### {0}")).format(text)
    grader = ("math", "math", "math", "numeric", "choice", "exact")[number % 6]
    gold = {"choice": "A", "exact": "north-west"}.get(grader) or draw.choice(
        GOLDS[:1] if grader == "numeric" else GOLDS
    )
    return Item(grader, gold, text, CHOICES if grader == "choice" else {})


@pytest.mark.slow
def test_ten_thousand_fuzzed_answers_end_in_time():
    pytest.importorskip("math_verify")
    draw = random.Random(20)
    items = [fuzzed(draw, number) for number in range(COUNT)]
    start = time.monotonic()
    with GraderPool(("math",), workers=2, timeout=5) as pool:
        verdicts = list(pool.grade(items))
    assert len(verdicts) == COUNT and time.monotonic() - start < 400
    wrongly = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is Verdict.RIGHT]
    assert not [item for item in wrongly if item.grader != "choice"]  # a letter can come by chance
    assert verdicts.count(Verdict.TIMED_OUT) < COUNT / 500


def test_the_readers_raise_nothing(monkeypatch):
    """The same without a process around it, and without sympy, which may raise what it likes."""
    monkeypatch.setattr("fastflow.evaluate.graders.mathematics.same_by_sympy", lambda gold, answer: None)
    draw = random.Random(21)
    for number in range(COUNT // 5):
        item = fuzzed(draw, number)
        assert isinstance(grade(item), Verdict), item
