"""Reads prompts that a Python program holds: texts, lists of chat messages, or records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastflow.data.json_file import check_values
from fastflow.errors import FastflowError

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
FORM = "a text, a list of {role, content} messages, or a record (a dictionary) with the field data.prompt_field"


def read_given(prompts: Iterable[Any], prompt_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a record for each prompt, with its place in the list. Records are copied.

    Raises FastflowError for a prompt of another form, and for a field that no save could tell from another.
    """
    for number, prompt in enumerate(prompts):
        place = f"prompts[{number}]"
        if isinstance(prompt, Mapping) and (prompt_field in prompt or "role" not in prompt):
            record = dict(prompt)
        elif isinstance(prompt, (str, list)):
            record = {prompt_field: prompt}
        else:
            message = "; put the message into a list" if isinstance(prompt, Mapping) else ""
            raise FastflowError(f"{place} is a {type(prompt).__name__}, but must be {FORM}{message}")
        for name, value in record.items():
            _check_field(place, name, value)
        check_values(place, record)
        yield place, record


def _check_field(place: str, name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise FastflowError(f"{place} has the key {name!r}; the names of fields must be text")
    try:
        json.dumps(value, default=_as_text, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise FastflowError(
            f"{place}: field {name!r} holds what no save could compare ({error}); give texts, numbers, lists and "
            "dictionaries of these"
        ) from error


def _as_text(value: Any) -> str:
    """Return the text of a value, by which saves compare it, such as a date's. Raises TypeError where it has none, or
    another one in each process: a set is in no order, and an address is where the thing happens to be.
    """
    text = str(value)
    if isinstance(value, (set, frozenset)) or callable(value) or _ADDRESS.search(text):
        raise TypeError(f"a {type(value).__name__}")
    return text
