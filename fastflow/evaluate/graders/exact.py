"""The grader `exact`: the same characters, but for blanks at the ends."""

from __future__ import annotations

import re

from fastflow.evaluate.graders.gold import behind_mark
from fastflow.evaluate.graders.second_thoughts import boxed_answer
from fastflow.evaluate.graders.statements import spoken, stated_answer
from fastflow.evaluate.graders.verdict import Verdict, verdict_of

_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")


def grade(gold: str, response: str) -> Verdict:
    """The verdict on a response: all of it, its box or its statement. An empty gold answer is never matched."""
    if gold.strip() and response.strip() == gold.strip():
        return Verdict.RIGHT
    answer = extract(response)
    if not answer:
        return Verdict.UNPARSED
    return verdict_of(bool(gold.strip()) and answer == behind_mark(gold).strip())


def extract(response: str) -> str:
    """The text that the response answers with; "" for none."""
    text = spoken(response)
    boxed = boxed_answer(text)
    answer = (boxed[-1] if boxed else stated_answer(text) or text) if "\\boxed" not in text or boxed else ""
    return unwrapped(answer.strip())


def unwrapped(answer: str) -> str:
    r"""An answer without \text{} around all of it."""
    found = _TEXT.fullmatch(answer)
    return found.group(1).strip() if found else answer
