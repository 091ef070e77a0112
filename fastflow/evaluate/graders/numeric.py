"""The grader `numeric`: one number, whole numbers exactly and others within a relative tolerance."""

from __future__ import annotations

import re
from fractions import Fraction

import mpmath

from fastflow.evaluate.graders.algebra.answer import Many, Quantity, Relation
from fastflow.evaluate.graders.algebra.expression import Unreadable
from fastflow.evaluate.graders.algebra.latex import normalise
from fastflow.evaluate.graders.algebra.read import read
from fastflow.evaluate.graders.algebra.value import Number, TooLarge, Undefined, evaluate, is_real
from fastflow.evaluate.graders.gold import in_solution
from fastflow.evaluate.graders.mathematics import LONGEST_ANSWER, equivalent
from fastflow.evaluate.graders.mathematics import extract as extract_parts
from fastflow.evaluate.graders.second_thoughts import is_taken_back
from fastflow.evaluate.graders.statements import plain, spoken
from fastflow.evaluate.graders.verdict import Verdict, verdict_of

TOLERANCE = Fraction(1, 10**6)  # relative
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^*])-?"
    r"(?:\d{1,3}(?:\.\d{3})*,\d{2}(?![\d,])|\d{1,3}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+(?![\d,])|\d+)"
    r"(?:\.\d+)?(?:[eE][+-]?\d+)?"
    r"(?:\s*(?:\\times|\\cdot|[×·*xX])\s*10\s*(?:(?:\^|\*\*)\s*\{?\s*[-−]?\d+\s*\}?|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|\s*/\s*\d+"
    r"| (?:hundred|thousand|million|billion|trillion|dozen)\b)?(?![A-Za-z_\d]|\.\d|\s*(?:\*\*|\^))|-?(?<![\w.])\.\d+"
)
_PROGRAM = re.compile(r"__|\b(?:import|eval|exec|lambda|print)\b")
_OPERAND = re.compile(
    r"(?:\d\s*[-+*/×÷–]|\b(?:not|than|least|most|over|under|below|above|between|from|minus|nor|neither|except|up to|"
    r"other than|(?:not|n't|cannot|never)(?:\s+\w+){1,3})|n't|[<>≤≥≠±])\s*$",
    re.IGNORECASE,
)
_OPEN_END = re.compile(r"\s*(?:\+(?!\s*\d)|\bor (?:more|less|fewer|so)\b)")
_BOUND = re.compile(
    r"[<>≤≥≠±]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|pm|[lc]?dots)\b|\d\s*\+\s*$|n't\b|"
    r"\b(?:at least|at most|more than|less than|fewer than|or (?:more|less|fewer)|up to|not|between|over|under|above|"
    r"below|(?:is|was) (?:wrong|incorrect|false|too))\b|\((?:wrong|incorrect)\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"\b(?:step|case|part|question|problem|page|pages|chapter|figure|table|line|example|section|note)\s+\d+\b:?",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"(?<=[\w%$°])(?:\s+\([^()]*\)|,\s+(?:which|that) is\s+(?:twice|thrice|half|double|triple)\b[^=.!?,\n]*)"
    r"(?=\s*[.!]?\s*$)"
)
_SUM = re.compile(r"(?P<total>[^()]*\d[$]?)\s+\((?P<sum>(?:[\d\s.,$+*/×÷·=−-]|\\(?:cdot|times|div)\b)+)\)\s*")
_UNITS = re.compile(r"(?<=\d)(?=(?:[kcm]?m|k?g|ml|min|h|km/h|mph|s)\b)")
_UNFINISHED = re.compile(r"could not|cannot|can't|don't know|do not know|unable|not sure|unknown", re.IGNORECASE)


def grade(gold: str, response: str) -> Verdict:
    """The verdict on a response: its box, its statement, otherwise its last number."""
    wanted = number(in_solution(gold))
    parts = extract_parts(response)
    if len(parts) > 1:
        return verdict_of(equivalent(gold, parts))
    given = number(_without_sum(parts[0])) if parts else None
    if given is None and parts:
        given = _in_words(parts[0])
    if not parts:
        given = _without_answer(spoken(response))
    if given is None or wanted is None:
        return Verdict.UNPARSED if given is None else Verdict.WRONG
    return verdict_of(close(wanted, given))


def extract(response: str) -> str:
    """What the response gives as its number, as it is written; "" for none."""
    if parts := extract_parts(response):
        return ", ".join(parts)
    text = spoken(response)
    found = [] if _without_answer(text) is None else _NUMBER.findall(_ready(text))
    return found[-1] if found else ""


def number(text: str) -> Number | None:
    """The value of a text that is one number, with or without unit, currency or name; None where it is not."""
    if len(text) > LONGEST_ANSWER:
        return None
    if re.fullmatch(r"[\s€£$]*-?(?:\d{1,3}(?:\.\d{3})+|\d+),\d{1,2}[\s€£]*", text):  # a decimal comma
        text = text.replace(".", "").replace(",", ".")
    answer = read(normalise(text))
    if isinstance(answer, Relation) and answer.name and answer.value is not None:
        answer = answer.value
    if isinstance(answer, Many) or not isinstance(answer, Quantity):
        return None
    try:
        value = evaluate(answer.tree, {})
    except (KeyError, TooLarge, Undefined, Unreadable):
        return None
    return value if is_real(value) and not mpmath.isinf(_float(value)) else None


def _without_sum(text: str) -> str:
    """A number without the sum behind it that has its value: "18 (9 + 9)", which is no product."""
    found = _SUM.fullmatch(text) if len(text) <= LONGEST_ANSWER else None
    if not found:
        return text
    total, worked_out = number(found.group("total")), number(found.group("sum"))
    same = total is not None and worked_out is not None and close(total, worked_out)
    return found.group("total") if same else text


def close(wanted: Number, given: Number) -> bool:
    """Whether two numbers are the same: exactly if both are whole, otherwise by the relative tolerance."""
    if isinstance(wanted, Fraction) and isinstance(given, Fraction):
        if wanted.denominator == given.denominator == 1:
            return wanted == given
        return abs(wanted - given) <= TOLERANCE * abs(wanted)
    wanted, given = _float(wanted), _float(given)
    return bool(abs(wanted - given) <= abs(wanted) * mpmath.mpf(TOLERANCE.numerator) / TOLERANCE.denominator)


def _in_words(text: str) -> Number | None:
    """The number of a statement such as "65 rolls, all in all"; None where it has several."""
    if _PROGRAM.search(text) or _BOUND.search(_ready(text)):
        return None
    found = _NUMBER.findall(_ASIDE.sub("", _ready(text).rsplit("=", 1)[-1]))
    return number(found[0]) if len(found) == 1 else None


def _without_answer(text: str) -> Number | None:
    """The last number of a text that gives no answer; None where it took one back."""
    return None if is_taken_back(text) else _last_number(text)


def _last_number(text: str) -> Number | None:
    if _UNFINISHED.search(text[-200:]) or _PROGRAM.search(text):
        return None
    ready = _LABEL.sub("", _ready(text))
    without_aside = _ASIDE.sub("", ready)
    ready = without_aside if _NUMBER.search(without_aside) else ready
    found = list(_NUMBER.finditer(ready))
    if not found or _OPERAND.search(ready[: found[-1].start()]) or _OPEN_END.match(ready, found[-1].end()):
        return None
    return number(found[-1].group())


def _ready(text: str) -> str:
    text = re.sub(r"\b(?:minus|negative)\s+(?=\d)", "-", _UNITS.sub(" ", plain(text)), flags=re.IGNORECASE)
    text = re.sub(r"\bUS\s*(?=\\?\$)", "", text)
    return text.replace("−", "-").replace("\\$", "").replace("$", "").replace("{,}", ",")


def _float(value: Number) -> Number:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else mpmath.re(value)
