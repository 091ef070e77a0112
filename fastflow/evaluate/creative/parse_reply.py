"""Read a judge's reply: the JSON object in it, whatever stands around it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 100_000  # characters of a reply that are read
MOST_OBJECTS = 50
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_FRACTION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:/\s*([0-9]+))?\s*")


def find_grades(
    reply: str, names: Sequence[str], lowest: float, highest: float, judged: str
) -> dict[str, float] | None:
    """Return the grades that the reply gives to all criteria; None where it gives none, or a grade off the scale.

    The last object with all names counts. An object that stands in `judged`, the text under judgement, is the judge's
    only where there is no other: a response cannot grade itself by being quoted.
    """
    found = []
    for tree in objects(reply):
        grades = {name: _grade(_entry(tree, name), highest) for name in names}
        if all(value is not None and lowest <= value <= highest for value in grades.values()):
            found.append((tree, {name: float(value) for name, value in grades.items() if value is not None}))
    return _last_own(found, judged)


def find_choice(reply: str, name: str, choices: Sequence[str], judged: str) -> str | None:
    """Return the choice in the entry `name` of the reply's last object; of quotations as `find_grades`."""
    found = []
    for tree in objects(reply):
        value = _entry(tree, name)
        text = value.strip().lower() if isinstance(value, str) else ""
        if text in choices:
            found.append((tree, text))
    return _last_own(found, judged)


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost objects in a text, as JSON, with trailing commas, or as Python writes them."""
    text = _THINKING.sub("", text[:LONGEST])
    place = count = 0
    while count < MOST_OBJECTS and (start := text.find("{", place)) >= 0:
        end = _closing(text, start)
        tree = _parsed(text[start:end]) if end else None
        place = end if tree is not None and end else start + 1
        count += 1
        if tree is not None:
            yield tree


def _closing(text: str, start: int) -> int | None:
    """Return the place behind the brace that closes the one at `start`; braces in strings do not count."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        character = text[at]
        if quoted and character == "\\":
            at += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted and character in "{}":
            depth += 1 if character == "{" else -1
            if not depth:
                return at + 1
        at += 1
    return None


def _parsed(text: str) -> dict[str, Any] | None:
    for form in (text, _TRAILING_COMMA.sub(r"\1", text)):
        for read in (json.loads, ast.literal_eval):  # literals only: nothing of the reply is executed
            try:
                tree = read(form)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if isinstance(tree, dict):
                return tree
    return None


def _entry(tree: dict[str, Any], name: str) -> Any:
    """Find an entry whatever its case, also below an object that stands alone, as in {"grades": {...}}."""
    while True:
        plain = {str(key).strip().lower(): value for key, value in tree.items()}
        if name.lower() in plain:
            value = plain[name.lower()]
            return value.get("grade", value.get("score")) if isinstance(value, dict) else value
        inner = [value for value in tree.values() if isinstance(value, dict)]
        if len(inner) != 1:
            return None
        (tree,) = inner


def _grade(value: Any, highest: float) -> float | None:
    """Return a number as it is: one that is not finite, or too large for a float, is off the scale."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[2] is not None and float(match[2]) != highest):
        return None
    return float(match[1])


def _last_own(found: list[tuple[dict[str, Any], Any]], judged: str) -> Any:
    if len(found) > 1:
        quoted = list(objects(judged))
        own = [entry for entry in found if entry[0] not in quoted]
        found = own or found
    return found[-1][1] if found else None
