"""Reads and compares the answers of responses for the methods that ask for them, by the graders of `fastflow grade`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastflow.data.gym import ENTRY
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.gym import as_gold
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.majority import NO_ANSWER as NO_CLASS
from fastflow.evaluate.majority import votes
from fastflow.machine import cores
from fastflow.objectives.answers import NO_ANSWER

GYM = "gym"
MOST_WORKERS = 8  # processes; a step's responses are graded between sampling and training


class GradedAnswers:
    """An AnswerReader over processes that can be killed; they start with the first answer.

    grader: math, numeric, exact, or gym for records that hold an entry of reasoning-gym. answer_field: of a record with
    its answer; math takes a whole solution with a box.
    """

    def __init__(self, grader: str, answer_field: str):
        self._grader, self._field = grader, answer_field
        workers = min(MOST_WORKERS, max(1, cores() // 2))
        self._pool = GraderPool(workers=workers, needs_math=grader == "math", needs_gym=grader == GYM)

    def are_right(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Whether each response gives its record's answer; one that hits the limit of time or memory does not."""
        items = [Item(self._grader, self._gold(record), text) for text, record in zip(texts, records, strict=True)]
        return [verdict is Verdict.RIGHT for verdict in self._pool.grade(items)]

    def classes(self, texts: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the answers of each group: what the grader takes for the same answer has one number."""
        groups = [number for number, size in enumerate(sizes) for _ in range(size)]
        read = self._pool.judge(Item(self._grader, "", text) for text in texts)
        rows = [{"question": group, "answer": answer} for group, (_, answer) in zip(groups, read, strict=True)]
        return [NO_ANSWER if number == NO_CLASS else number for number in votes(rows, self._grader, self._pool)]

    def _gold(self, record: Mapping[str, Any]) -> str:
        return as_gold(record[ENTRY]) if self._grader == GYM else str(record[self._field])

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def grader_for(grader: str, prompts: Sequence[Prompt]) -> str:
    """The grader of the answers to these prompts: reasoning-gym's own where all of them come from it."""
    return GYM if all(ENTRY in prompt.record for prompt in prompts) else grader


def check_answers(prompts: Sequence[Prompt], answer_field: str) -> None:
    """Raise FastflowError where a record holds no answer."""
    for prompt in prompts:
        if ENTRY in prompt.record:
            continue
        if prompt.record.get(answer_field) is None or not str(prompt.record[answer_field]).strip():
            known = ", ".join(sorted(prompt.record)) or "nothing"
            raise FastflowError(
                f"{prompt.source}: the record has no {answer_field!r}, with which objective.reward = answer compares "
                f"responses (it has {known}); name the field with the answer by objective.answer_field"
            )
