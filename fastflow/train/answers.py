"""Reads and compares the answers of responses for the methods that ask for them, by the graders of `fastflow grade`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastflow.config.methods import ANSWER
from fastflow.config.schema import ObjectiveConfig
from fastflow.counted import counted
from fastflow.data.gym import ENTRY
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.gold import gold_text
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.gym import as_gold
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.majority import NO_ANSWER as NO_CLASS
from fastflow.evaluate.majority import votes
from fastflow.machine import cores
from fastflow.objectives.answers import NO_ANSWER

logger = logging.getLogger(__name__)

GYM = "gym"
MOST_WORKERS = 8  # processes; a step's responses are graded between sampling and training


def grader_pool(graders: Collection[str]) -> GraderPool:
    """A pool that leaves half of the cores to the training; its processes start with the first answer."""
    return GraderPool(graders, workers=min(MOST_WORKERS, max(1, cores() // 2)))


class GradedAnswers:
    """An AnswerReader over processes that can be killed; they start with the first answer.

    grader: math, numeric, exact, or gym for records that hold an entry of reasoning-gym. answer_field: of a record with
    its answer; math and numeric take a whole solution with a box, or with #### before its answer.
    """

    def __init__(self, grader: str, answer_field: str):
        self._grader, self._field = grader, answer_field
        self._pool = grader_pool({grader})

    def are_right(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Whether each response gives its record's answer; one that hits the limit of time or memory does not."""
        items = [self._item(record, text) for text, record in zip(texts, records, strict=True)]
        return [verdict is Verdict.RIGHT for verdict in self._pool.grade(items)]

    def classes(self, texts: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the answers of each group: what the grader takes for the same answer has one number."""
        groups = [number for number, size in enumerate(sizes) for _ in range(size)]
        read = self._pool.judge(Item(self._grader, "", text) for text in texts)
        rows = [{"question": group, "answer": answer} for group, (_, answer) in zip(groups, read, strict=True)]
        return [NO_ANSWER if number == NO_CLASS else number for number in votes(rows, self._grader, self._pool)]

    def check_golds(self, prompts: Sequence[Prompt]) -> None:
        """Warn of gold answers that do not equal themselves for the grader: no response can be right.

        Raises FastflowError where none equals itself.
        """
        items = [self._item(prompt.record, "") for prompt in prompts]
        with self._pool as pool:
            bad = pool.unequal_golds(items)
        if not bad:
            return
        found = (
            f"{len(bad)} of {counted(len(items), 'answer')} in {self._field} (objective.answer_field) do not equal "
            f"themselves for objective.grader = {self._grader} (first: {items[bad[0]].gold!r:.100} at "
            f"{prompts[bad[0]].source})"
        )
        if len(bad) == len(items):
            raise FastflowError(f"{found}, so that no response can be right; mend them, or choose another grader")
        logger.warning("%s: no response to them can be right; mend them, or remove the records", found)

    def _item(self, record: Mapping[str, Any], text: str) -> Item:
        gold = as_gold(record[ENTRY]) if self._grader == GYM else gold_text(answer_of(record, self._field))
        assert gold is not None, "check_answers has seen the record"
        return Item(self._grader, gold, text)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def read_answers(settings: ObjectiveConfig, prompts: Sequence[Prompt], *, try_golds: bool = True) -> GradedAnswers:
    """The reader of a run. try_golds: whether the records' answers are graded too.

    Raises FastflowError where the reward needs answers that the records do not have, or that no response can equal.
    """
    if settings.reward != ANSWER:
        return GradedAnswers(settings.grader, settings.answer_field)
    reader = GradedAnswers(grader_for(settings.grader, prompts), settings.answer_field)
    if not all(ENTRY in prompt.record for prompt in prompts):
        check_answers(prompts, settings.answer_field)
        if try_golds:
            reader.check_golds(prompts)
    return reader


def grader_for(grader: str, prompts: Sequence[Prompt]) -> str:
    """The grader of the answers to these prompts: reasoning-gym's own where all of them come from it."""
    return GYM if all(ENTRY in prompt.record for prompt in prompts) else grader


def answer_of(record: Mapping[str, Any], field: str) -> Any:
    """A record's answer: that of the field, otherwise that of a dotted path such as reward_model.ground_truth. None
    where there is neither.
    """
    if field in record:
        return record[field]
    found: Any = record
    for name in field.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def check_answers(prompts: Sequence[Prompt], answer_field: str) -> None:
    """Raise FastflowError where a record holds no answer."""
    for prompt in prompts:
        answer = answer_of(prompt.record, answer_field)
        if isinstance(answer, Mapping):
            raise FastflowError(
                f"{prompt.source}: {answer_field} holds a mapping ({', '.join(map(str, answer)) or 'empty'}), which is "
                f"no answer; name the field in it, as in objective.answer_field = {answer_field}."
                f"{next(iter(answer), 'name')}"
            )
        if answer is None and answer_field not in prompt.record:
            known = ", ".join(sorted(prompt.record)) or "nothing"
            raise FastflowError(
                f"{prompt.source}: the record has no {answer_field!r}, with which objective.reward = answer compares "
                f"responses (it has {known}); name the field with the answer by objective.answer_field"
            )
        if gold_text(answer) is None:
            raise FastflowError(
                f"{prompt.source}: field {answer_field!r} is {answer!r:.100}, which is no answer "
                "(objective.answer_field); fill it in, or remove the record"
            )
