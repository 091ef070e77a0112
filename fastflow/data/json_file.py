"""Reads records from JSON: one object a line, an array of objects, or objects over several lines."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastflow.data.text_file import read_text
from fastflow.errors import FastflowError

VISIBLE = re.compile(r"\S")
DEEPEST = 100  # levels of nesting that every later step can read and write


def read_json(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each record with its place: file and line, or file and entry of the array.

    Raises FastflowError, with that place, for what is not JSON, not an object, nested too deeply, or not text.
    """
    text = read_text(path)
    records = list(_values(path, text) if _is_spread_out(text) else _lines(path, text))
    for place, record in records:
        check_values(place, record)
    return records


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.lstrip("\ufeff")  # a byte-order mark, where another file was appended
        if line.strip():
            place = f"{path}:{number}"
            with _parsing(place):
                record = json.loads(line)
            _check_object(place, record, "each line")
            yield place, record


def _is_spread_out(text: str) -> bool:
    """Whether the file is an array, or its first object takes several lines."""
    first, _, rest = text.lstrip().partition("\n")
    if _is_json(first):
        return first.startswith("[") and not rest.strip()
    return first.startswith("[") or (first.startswith("{") and not _is_json(rest.partition("\n")[0]))


def _values(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield objects that follow one another, and those of an array."""
    end, line = 0, 1
    while found := VISIBLE.search(text, end):
        position = found.start()
        line += text.count("\n", end, position)
        with _parsing(f"{path}:{line}", whole=path):
            value, end = json.JSONDecoder().raw_decode(text, position)
        if isinstance(value, list):
            records = [(f"{path}: entry {number} of the array", entry) for number, entry in enumerate(value, start=1)]
        else:
            records = [(f"{path}:{line}", value)]
        for place, record in records:
            _check_object(place, record, "each record")
            yield place, record
        line += text.count("\n", position, end)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@contextlib.contextmanager
def _parsing(place: str, whole: Path | None = None) -> Iterator[None]:
    """Name the place in the error. whole: the file, where the parser counts the lines."""
    try:
        yield
    except json.JSONDecodeError as error:
        where = place if whole is None else f"{whole}:{error.lineno}"
        raise FastflowError(f"{where}: not valid JSON ({error.msg}); each line must be one JSON object") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise FastflowError(f"{place}: not readable as JSON ({error}); repair or remove the record") from error
    except RecursionError as error:
        raise _too_deep(place) from error


def _too_deep(place: str) -> FastflowError:
    return FastflowError(f"{place}: nested more than {DEEPEST} levels deep; flatten or remove the record")


def _check_object(place: str, record: Any, what: str) -> None:
    if not isinstance(record, dict):
        raise FastflowError(f"{place}: found a {type(record).__name__}, but {what} must be one JSON object")


def check_values(place: str, record: dict[str, Any]) -> None:
    """Raise FastflowError for what no later step can tokenise or write: half characters, values nested too deeply."""
    waiting: list[tuple[str, Any, int]] = [(f"field {name!a}", (name, value), 1) for name, value in record.items()]
    while waiting:
        field, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise _too_deep(place)
        if isinstance(value, str):
            _check_text(place, field, value)
        elif isinstance(value, dict):
            waiting.extend((field, part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, (list, tuple)):
            waiting.extend((field, part, depth + 1) for part in value)


def _check_text(place: str, field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FastflowError(
            f"{place}: {field} holds {text[error.start]!a}, half of a character (a lone surrogate), which is not text; "
            "repair or remove the record"
        ) from error
