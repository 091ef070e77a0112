"""The grader `math`: a formula, number, set, interval, matrix or equation, in a box or after "the answer is"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastflow.evaluate.graders.algebra.answer import Answer, Many, Quantity
from fastflow.evaluate.graders.algebra.equivalence import same
from fastflow.evaluate.graders.algebra.expression import Unreadable, parse
from fastflow.evaluate.graders.algebra.latex import normalise
from fastflow.evaluate.graders.algebra.read import read
from fastflow.evaluate.graders.algebra.symbolic import same_by_sympy
from fastflow.evaluate.graders.gold import in_solution
from fastflow.evaluate.graders.second_thoughts import boxed_answer
from fastflow.evaluate.graders.statements import plain, spoken, stated_answer
from fastflow.evaluate.graders.verdict import Verdict, verdict_of

LONGEST_ANSWER = 2000  # characters; nobody's answer is longer, and a box that never closes well may be


def extract(response: str) -> list[str]:
    """The parts of the response's answer, as they are written; none where it gives no answer."""
    text = spoken(response)
    if boxed := boxed_answer(text):
        return [part for part in boxed if part.strip()]
    stated = None if boxed is None and _has_box(text) else stated_answer(text) or _bare(text)
    return [stated] if stated else []


def grade(gold: str, response: str) -> Verdict:
    """The verdict on a response. gold: LaTeX or plain, with or without dollar signs, or a solution: see `gold`."""
    parts = extract(response)
    if not parts:
        return Verdict.UNPARSED
    return verdict_of(equivalent(gold, parts))


def equivalent(gold: str, parts: Sequence[str]) -> bool | None:
    """Whether the parts of an answer, together, are the gold answer; None where they cannot be compared."""
    gold = in_solution(gold)
    if not gold.strip() or any(len(text) > LONGEST_ANSWER for text in (gold, *parts)):
        return None if gold.strip() else False
    if len(parts) == 1 and gold.strip() == parts[0].strip():
        return True
    wanted, (given, *more) = normalise(gold), [normalise(part) for part in parts]
    if not more and _plain(wanted) == _plain(given):
        return True
    answer: Answer = read(given)
    if more:
        answer = Many((answer, *(read(part) for part in more)))
    target = read(wanted)
    outcome = same(target, answer)
    if outcome is not True and not more and isinstance(target, Quantity) and _is_decimal_comma(given):
        return same(target, read(given.replace(",", ".")))
    if outcome is None and not more:
        return same_by_sympy(_to_latex(wanted), _to_latex(given))
    return outcome


def _bare(text: str) -> str | None:
    """A response that is a formula and nothing else."""
    if len(text.strip()) > LONGEST_ANSWER:
        return None
    line = plain(text).strip().strip("$").strip()
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", line)
    if "\n" in line or line.endswith("!") or not re.search(r"\d", line) or words:
        return None
    return line if all(is_readable(side) for side in line.split("=")) else None


def _has_box(text: str) -> bool:
    return "\\boxed" in text


def _plain(text: str) -> str:
    """Without blanks, but for those between digits: "3 2/5" is not 32/5."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text).rstrip(".")


def _is_decimal_comma(text: str) -> bool:
    whole, comma, decimals = text.strip().lstrip("-").partition(",")
    return bool(comma) and whole.isdigit() and decimals.isdigit()


def _to_latex(text: str) -> str:
    """What was made of the LaTeX, back in words that a LaTeX parser knows."""
    for mark, macro in (("⦃", "\\{"), ("⦄", "\\}"), ("\\root ", "\\sqrt "), ("*", " \\cdot "), ("\\degree", "^\\circ")):
        text = text.replace(mark, macro)
    return text


def is_readable(text: str) -> bool:
    """Whether a text is a formula that this package reads by itself."""
    try:
        parse(normalise(text))
    except Unreadable:
        return False
    return True
