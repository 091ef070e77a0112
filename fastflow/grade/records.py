"""Lines to grade, checked before the first of them is graded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastflow.config.setting import suggest
from fastflow.data.json_file import read_json
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.choice import as_choices
from fastflow.evaluate.graders.grader import GRADERS, Item
from fastflow.evaluate.graders.gym import check_entry


def read_items(path: Path) -> list[tuple[str, dict[str, Any], Item]]:
    """Each line's place, its record as it stands, and what is graded of it.

    Raises FastflowError naming file, line and field for what cannot be graded.
    """
    if not path.is_file():
        raise FastflowError(f"file {path} does not exist; give a JSONL with grader, gold and response in each line")
    records = read_json(path)
    if not records:
        raise FastflowError(f"{path} holds no lines; each must have grader, gold and response")
    return [(place, record, _item(place, record)) for place, record in records]


def _item(place: str, record: dict[str, Any]) -> Item:
    grader = _text(place, record, "grader")
    if grader not in GRADERS:
        raise FastflowError(f"{place}: field 'grader' is {grader!r}: {suggest(grader, GRADERS)}")
    if grader == "gym":
        entry = record["entry"] if "entry" in record else record.get("gold")
        return Item(grader, check_entry(place, entry), _text(place, record, "response"))
    gold, response = _text(place, record, "gold", numbers=True), _text(place, record, "response")
    if grader != "choice":
        return Item(grader, gold, response)
    choices = as_choices(place, "choices", record.get("choices"))
    letter = gold.strip().strip("().").upper()
    if letter not in choices:
        raise FastflowError(f"{place}: field 'gold' is {gold!r}, but field 'choices' has {', '.join(choices)}")
    return Item(grader, gold, response, choices)


def _text(place: str, record: dict[str, Any], field: str, *, numbers: bool = False) -> str:
    if field not in record:
        raise FastflowError(f"{place}: field {field!r} is missing; each line needs grader, gold and response")
    value = record[field]
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise FastflowError(f"{place}: field {field!r} is a {type(value).__name__}, but must be text")
    return value
