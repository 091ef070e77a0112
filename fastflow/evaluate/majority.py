"""Which responses to a prompt give the same answer: classes for the majority vote.

A grader's verdict is no equivalence: a bare 5 answers 5 cm and 5 m, which are not each other. A class therefore holds
answers of which each is the same as every other, whichever is taken for the gold answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

NO_ANSWER = -1
MOST_PAIRS = 300  # of different answers to one prompt that are compared; beyond, only equal texts are one class

Pair = tuple[str, str]  # of different answers, in the order of their texts


def votes(rows: Sequence[dict[str, Any]], grader: str, pool: GraderPool) -> list[int]:
    """The class of each row's answer among its prompt's, numbered as they first come; NO_ANSWER without an answer.

    Answers of the graders math and numeric are one class where the grader takes each for the other. The classes do not
    depend on the order of the rows.
    """
    answers: dict[int, Counter[str]] = {}
    for row in rows:
        if row["answer"]:
            answers.setdefault(row["question"], Counter())[row["answer"]] += 1
    alike = _alike(answers, grader, pool) if grader in ("math", "numeric") else {}
    numbers = {
        question: _numbered(counts, _classes(counts, alike.get(question, set())))
        for question, counts in answers.items()
    }
    return [numbers[row["question"]][row["answer"]] if row["answer"] else NO_ANSWER for row in rows]


def _alike(answers: Mapping[int, Counter[str]], grader: str, pool: GraderPool) -> dict[int, set[Pair]]:
    """The pairs of each prompt's answers that the grader takes for the same, both ways."""
    pairs = [
        (question, first, second)
        for question, counts in answers.items()
        if len(counts) * (len(counts) - 1) // 2 <= MOST_PAIRS
        for first, second in combinations(sorted(counts), 2)
    ]
    for turned in (False, True):
        golds = [(second, first) if turned else (first, second) for _, first, second in pairs]
        verdicts = pool.grade(Item(grader, gold, f"\\boxed{{{answer}}}") for gold, answer in golds)
        pairs = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is Verdict.RIGHT]
    alike: dict[int, set[Pair]] = {}
    for question, first, second in pairs:
        alike.setdefault(question, set()).add((first, second))
    return alike


def _classes(counts: Counter[str], alike: set[Pair]) -> list[list[str]]:
    """Answers that are all alike together. One that is like two that differ, such as a bare number, decides last.

    Each joins the class with the most responses among those that take it.
    """
    like: dict[str, set[str]] = {answer: set() for answer in counts}
    for first, second in alike:
        like[first].add(second)
        like[second].add(first)

    def is_between(answer: str) -> bool:
        return any(two not in like[one] for one, two in combinations(like[answer], 2))

    classes: list[list[str]] = []
    for answer in sorted(counts, key=lambda answer: (is_between(answer), -counts[answer], answer)):
        fitting = [members for members in classes if like[answer].issuperset(members)]
        if fitting:
            max(fitting, key=lambda members: sum(counts[member] for member in members)).append(answer)
        else:
            classes.append([answer])
    return classes


def _numbered(counts: Iterable[str], classes: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of each answer's class: the place of its first member among the different answers."""
    place = {answer: number for number, answer in enumerate(counts)}
    return {answer: min(place[member] for member in members) for members in classes for answer in members}
