r"""Answers in boxes: `\boxed{...}` with balanced braces, and which of several boxes counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|(-?\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace behind a backslash is no grouping one
_INNER = re.compile(r"\s*\\(?:boxed|fbox|framebox)\s*\{(?=.*\}\s*$)", re.DOTALL)
# What may stand between boxes of one answer: delimiters, commas, "and", "or", and names such as "x_1 =" or "(b)".
_JOINT = re.compile(
    r"(?:\n\s*(?:[-*•]|\d[.)])\s|\s|\$|\\[()\[\],;:! ]|\\quad|\\qquad|[,;]|\b(?:and|or|und|oder)\b|和|或|、|，|"
    r"\\(?:text|mbox|textrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\\(?:lor|land|vee|wedge)\b|\(?[a-e]\)|\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=)*",
    re.IGNORECASE,
)
_NAMED = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*\$?\s*$")
_LONGEST_JOINT = 80


@dataclass(frozen=True)
class Box:
    """One box: its content, and where it stands in the text."""

    content: str
    start: int
    end: int


def find_boxes(text: str) -> list[Box]:
    """All closed boxes, in order; a box within a box counts as the outer one."""
    return list(_scan(text))


def last_answer(boxes: list[Box], text: str) -> list[Box]:
    """The last box, with those right before it that belong to the same answer ("x = [2] or x = [5]")."""
    chosen = boxes[-1:]
    for box in reversed(boxes[:-1]):
        between = text[box.end : chosen[0].start]
        if len(between) > _LONGEST_JOINT or not _JOINT.fullmatch(between):
            break
        chosen.insert(0, box)
    return chosen


def last_contents(text: str) -> list[str] | None:
    """What the last box says, in parts where adjoining boxes form one answer; None where there is no box."""
    boxes = find_boxes(text)
    if not boxes:
        return None
    chosen = last_answer(boxes, text)
    names = [_NAMED.search(text[max(0, box.start - 20) : box.start]) for box in chosen] if len(chosen) > 1 else [None]
    if all(names):
        return [f"{name.group(1)} = {box.content}" for name, box in zip(names, chosen, strict=True) if name]
    return [box.content for box in chosen]


def _scan(text: str) -> Iterator[Box]:
    position, closing = 0, _pairs(text)
    while opening := _OPENING.search(text, position):
        if opening.group(2) is not None:
            position = opening.end()
            yield Box(opening.group(2), opening.start(), position)
            continue
        end = closing.get(opening.end() - 1)
        if end is None:
            position = opening.end()
            continue
        content = text[opening.end() : end]
        while (inner := _INNER.match(content)) and closing_brace(content, inner.end()) == content.rindex("}"):
            content = content[inner.end() : content.rindex("}")]
        yield Box(content, opening.start(), end + 1)
        position = end + 1


def _pairs(text: str) -> dict[int, int]:
    """The place of the closing brace of each opening one that is closed."""
    waiting: list[int] = []
    found = {}
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            waiting.append(brace.start())
        elif brace.group() == "}" and waiting:
            found[waiting.pop()] = brace.start()
    return found


def closing_brace(text: str, start: int) -> int | None:
    """The place of the brace that closes the one before `start`; None where there is none."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position
        position += 1
    return None
