"""Which responses to a prompt give the same answer: classes for the majority vote.

A grader's verdict is no equivalence: a bare 5 answers 5 cm and 5 m, which are not each other. A class therefore holds
answers of which each is the same as every other, whichever is taken for the gold answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

NO_ANSWER = -1
MOST_IN_PAIRS = 64  # different answers to one prompt, the most frequent, that are all compared with each other
PROBE = "0"  # an answer that cannot be compared with this in time is compared with no other

Pair = tuple[int, str, str]  # the question, and two different answers to it in the order of their texts
Classes = list[list[str]]


def votes(rows: Sequence[dict[str, Any]], grader: str, pool: GraderPool) -> list[int]:
    """The class of each row's answer among its prompt's, numbered as they first come; NO_ANSWER without an answer.

    Answers of the graders math and numeric are one class where the grader takes each for the other. The classes do not
    depend on the order of the rows.
    """
    answers: dict[int, Counter[str]] = {}
    for row in rows:
        if row["answer"]:
            answers.setdefault(row["question"], Counter())[row["answer"]] += 1
    if grader in ("math", "numeric"):
        classes = _compared(answers, grader, pool)
    else:
        classes = {question: [[answer] for answer in counts] for question, counts in answers.items()}
    numbers = {question: _numbered(counts, classes[question]) for question, counts in answers.items()}
    return [numbers[row["question"]][row["answer"]] if row["answer"] else NO_ANSWER for row in rows]


def _compared(answers: Mapping[int, Counter[str]], grader: str, pool: GraderPool) -> dict[int, Classes]:
    """Classes by the grader. The most frequent answers are all compared with each other, each further one with the
    first of each of their classes: it joins the largest that takes it, otherwise it is alone.
    """
    ranked = {question: sorted(counts, key=lambda one: (-counts[one], one)) for question, counts in answers.items()}
    left_out = _slow({one for order in ranked.values() if len(order) > 1 for one in order}, grader, pool)
    pairs = [
        _pair(question, one, other)
        for question, order in ranked.items()
        for one, other in combinations([one for one in order[:MOST_IN_PAIRS] if one not in left_out], 2)
    ]
    alike = _alike(pairs, grader, pool)
    classes = {
        question: _classes(question, {one: counts[one] for one in ranked[question][:MOST_IN_PAIRS]}, alike)
        for question, counts in answers.items()
    }
    alike = _alike(
        [
            _pair(question, members[0], answer)
            for question, order in ranked.items()
            for answer in order[MOST_IN_PAIRS:]
            for members in classes[question]
            if left_out.isdisjoint((members[0], answer))
        ],
        grader,
        pool,
    )
    for question, order in ranked.items():
        for answer in order[MOST_IN_PAIRS:]:
            fitting = [members for members in classes[question] if _pair(question, members[0], answer) in alike]
            _add(answer, fitting, classes[question], answers[question])
    return classes


def _slow(answers: Collection[str], grader: str, pool: GraderPool) -> set[str]:
    """Answers that hit the limit of time or memory: each does so once, and not with every other answer."""
    verdicts = pool.grade(Item(grader, PROBE, f"\\boxed{{{answer}}}") for answer in answers)
    return {answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict is Verdict.TIMED_OUT}


def _pair(question: int, one: str, other: str) -> Pair:
    return (question, one, other) if one < other else (question, other, one)


def _alike(pairs: Sequence[Pair], grader: str, pool: GraderPool) -> set[Pair]:
    """The pairs that the grader takes for the same, both ways."""
    for turned in (False, True):
        golds = [(second, first) if turned else (first, second) for _, first, second in pairs]
        verdicts = pool.grade(Item(grader, gold, f"\\boxed{{{answer}}}") for gold, answer in golds)
        pairs = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is Verdict.RIGHT]
    return set(pairs)


def _classes(question: int, counts: Mapping[str, int], alike: set[Pair]) -> Classes:
    """Answers that are all alike together. One that is like two that differ, such as a bare number, decides last.

    Each joins the class with the most responses among those that take it.
    """
    like: dict[str, set[str]] = {answer: set() for answer in counts}
    for one, other in combinations(counts, 2):
        if _pair(question, one, other) in alike:
            like[one].add(other)
            like[other].add(one)

    def is_between(answer: str) -> bool:
        return any(two not in like[one] for one, two in combinations(like[answer], 2))

    classes: Classes = []
    for answer in sorted(counts, key=lambda answer: (is_between(answer), -counts[answer], answer)):
        _add(answer, [members for members in classes if like[answer].issuperset(members)], classes, counts)
    return classes


def _add(answer: str, fitting: Classes, classes: Classes, counts: Mapping[str, int]) -> None:
    """Put an answer into the class with the most responses among those that fit, otherwise into one of its own."""
    if fitting:
        max(fitting, key=lambda members: sum(counts[member] for member in members)).append(answer)
    else:
        classes.append([answer])


def _numbered(counts: Iterable[str], classes: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of each answer's class: the place of its first member among the different answers."""
    place = {answer: number for number, answer in enumerate(counts)}
    return {answer: min(place[member] for member in members) for members in classes for answer in members}
