"""A task's rows as questions with gold answers, each checked before the first response is sampled."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastflow.config.schema import DataConfig
from fastflow.config.sections import GYM
from fastflow.config.setting import suggest
from fastflow.data.conversation import Message, prompt_of
from fastflow.data.gym import make_entries
from fastflow.data.records import Record, read_records
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.boxes import find_boxes
from fastflow.evaluate.graders.choice import LETTERS, as_choices, option_text
from fastflow.evaluate.graders.gold import gold_text
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.gym import as_gold
from fastflow.evaluate.task import OWN, Task

logger = logging.getLogger(__name__)

GYM_SEED = 1_000_000  # far from the seeds of training, since entry i comes from seed + i
_OTHER_FIELDS = "rename it, or write a task in YAML that names the fields"


@dataclass(frozen=True)
class Question:
    """One question of a task. source: where its row stands. prompt: text or chat messages. choices: text by letter.
    record: its row, where a function of the user's reads it.
    """

    source: str
    prompt: str | list[Message]
    gold: str
    choices: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def item(self, task: Task, response: str) -> Item:
        """A response to it, as graders take it."""
        return Item(task.grader, self.gold, response, self.choices)


def read_questions(task: Task, *, folder: str | None, limit: int) -> list[Question]:
    """The task's questions, the first `limit` of them where that is not 0.

    folder: a directory in which NAME.jsonl, NAME.parquet or a data set NAME stands in for the hub's.
    """
    if task.prompts:
        asked = [Question(f"{task.name}, prompt {number}", text, "") for number, text in enumerate(task.prompts, 1)]
        return asked[: limit or None]
    if task.gym:
        return _made(task, limit)
    source = _located(task, folder)
    records = _read(task, source)
    made = [_question(task, place, record, number, source) for number, (place, record) in enumerate(records)]
    questions = [question for question in made if question is not None]
    if len(questions) < len(made):
        logger.warning("%s: rows without a gold answer in a box are left out: %d of %d", task.name,
                       len(made) - len(questions), len(made))  # fmt: skip
    if not questions:
        raise FastflowError(f"task {task.name} has no question left")
    return questions[: limit or None]


def _read(task: Task, source: DataConfig) -> list[Record]:
    """Rows with a question, whose mistakes are told in the words of a task."""
    try:
        return read_records(source)
    except FastflowError as error:
        reason, _, _ = str(error).partition("; give data.path")
        if reason != str(error):
            form = f"{{{json.dumps(task.question)}: ..., {json.dumps(task.gold)}: ...}}"
            reason = f"task {task.name}: {reason}; write one question a line, such as {form}"
        if task.dataset:
            ways = f"check the network, or give --data_folder DIR that holds {task.name}{OWN[0]}"
            reason = re.sub(r"check data\.path, data\.subset and data\.split, or .*", ways, reason)
        error.args = (reason.replace("data.prompt_field", f"the question of task {task.name}; {_OTHER_FIELDS}"),)
        raise


def _made(task: Task, limit: int) -> list[Question]:
    """Questions of reasoning-gym; the gold answer of each is its entry, which its verifier reads."""
    path = GYM + task.gym
    entries = make_entries(path, task.settings, seed=GYM_SEED, limit=limit)
    return [
        Question(f"{path} entry {number} ({entry['name']})", _prompt(task, path, entry), as_gold(entry))
        for number, entry in enumerate(entries, start=1)
    ]


def _located(task: Task, folder: str | None) -> DataConfig:
    path, subset, split = task.path or task.dataset, task.subset, task.split
    if task.path and not Path(task.path).is_file():
        raise FastflowError(f"task {task.name}: the file {task.path} does not exist")
    if folder is not None and not task.path:
        here = [Path(folder) / f"{task.name}{ending}" for ending in OWN]
        found = next((file for file in here if file.is_file()), None)
        if found is not None:
            path = str(found)
        elif (Path(folder) / task.name).is_dir():
            path, subset = str(Path(folder) / task.name), None
        else:
            raise FastflowError(f"eval.data_folder = {folder} has neither {here[0].name} nor a data set {task.name}")
    return DataConfig(path=path, subset=subset, split=split, prompt_field=task.question, chat_template=True)


def _question(task: Task, place: str, record: dict[str, Any], number: int, source: DataConfig) -> Question | None:
    choices, letter = _choices(task, place, record, number)
    gold = "" if task.is_creative or task.is_rewarded else letter or _gold(task, place, record)
    if gold is None:
        return None
    options = "\n".join(f"{name}. {text}" for name, text in choices.items())
    asked = prompt_of(place, record, source)
    last = asked if isinstance(asked, str) else asked[-1]["content"]
    text = _prompt(task, place, {**record, "question": last, "choices": options})
    shown = text if isinstance(asked, str) else [*asked[:-1], {**asked[-1], "content": text}]
    return Question(place, shown, gold, choices, record if task.is_rewarded else {})


def _prompt(task: Task, place: str, values: Mapping[str, Any]) -> str:
    try:
        return task.prompt.format_map(values)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise FastflowError(f"{place}: the prompt of task {task.name} names {error}, which the row lacks") from error


def _gold(task: Task, place: str, record: Mapping[str, Any]) -> str | None:
    value = _field(task, place, record, task.gold)
    text = gold_text(value)
    if text is None:
        raise FastflowError(
            f"{place}: field {task.gold!r} is {value!r}, which is no gold answer; fill it in, or remove the row"
        )
    if task.gold_after:
        if task.gold_after not in text:
            raise FastflowError(f"{place}: field {task.gold!r} has no {task.gold_after!r} before its gold answer")
        return text.rsplit(task.gold_after, 1)[1].strip()
    if task.gold_box:
        boxes = find_boxes(text)
        return boxes[-1].content if boxes else None
    return text


def _choices(task: Task, place: str, record: Mapping[str, Any], number: int) -> tuple[dict[str, str], str]:
    """Options by letter, and the right letter where the first of several fields is right."""
    if not task.choices:
        return {}, ""
    if isinstance(task.choices, str):
        return as_choices(place, task.choices, _field(task, place, record, task.choices)), ""
    texts = [option_text(place, name, _field(task, place, record, name)).strip() for name in task.choices]
    order = np.arange(len(texts))
    if task.shuffle is not None:
        order = np.random.default_rng([task.shuffle, number]).permutation(len(texts))
    return {LETTERS[at]: texts[index] for at, index in enumerate(order)}, LETTERS[int(np.flatnonzero(order == 0)[0])]


def _field(task: Task, place: str, record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise FastflowError(
            f"{place}: no field {name!r}, which task {task.name} reads: {suggest(name, record)}; {_OTHER_FIELDS}"
        )
    return record[name]


def as_json(question: Question) -> str:
    """What identifies a question in a cache."""
    asked = [question.prompt, question.gold, question.choices, *([question.record] if question.record else [])]
    return json.dumps(asked, ensure_ascii=False, sort_keys=True, default=str)
