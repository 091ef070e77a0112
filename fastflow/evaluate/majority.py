"""Which responses to a prompt give the same answer: classes for the majority vote."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

NO_ANSWER = -1
MOST_PAIRS = 300  # of different answers to one prompt that are compared; beyond, only equal texts are one class


def votes(rows: Sequence[dict[str, Any]], grader: str, pool: GraderPool) -> list[int]:
    """The class of each row's answer among its prompt's, numbered as they first come; NO_ANSWER without an answer.

    Answers of the graders math and numeric are one class where the grader takes one for the other.
    """
    answers: dict[int, list[str]] = {}
    for row in rows:
        different = answers.setdefault(row["question"], [])
        if row["answer"] and row["answer"] not in different:
            different.append(row["answer"])
    classes = {question: list(range(len(different))) for question, different in answers.items()}
    if grader in ("math", "numeric"):
        _merge(answers, classes, grader, pool)
    return [
        classes[row["question"]][answers[row["question"]].index(row["answer"])] if row["answer"] else NO_ANSWER
        for row in rows
    ]


def _merge(answers: dict[int, list[str]], classes: dict[int, list[int]], grader: str, pool: GraderPool) -> None:
    pairs = [
        (question, first, second)
        for question, different in answers.items()
        if len(different) * (len(different) - 1) // 2 <= MOST_PAIRS
        for first, second in combinations(range(len(different)), 2)
    ]
    items = [
        Item(grader, answers[question][first], f"\\boxed{{{answers[question][second]}}}")
        for question, first, second in pairs
    ]
    for (question, first, second), verdict in zip(pairs, pool.grade(items), strict=True):
        numbers = classes[question]
        if verdict is Verdict.RIGHT and numbers[second] == second:  # still a class of its own
            numbers[second] = numbers[first]
