"""Where a formula comes apart: separators and signs outside of all brackets."""

from __future__ import annotations

OPENING, CLOSING = "([{⦃⟦", ")]}⦄⟧"


def split_outside(text: str, *separators: str) -> list[tuple[str, str]]:
    """The parts between separators that stand outside of brackets, each with the separator in front of it ("" first).

    Brackets of different kinds may close each other, as in half-open intervals.
    """
    parts, depth, start, before, position = [], 0, 0, "", 0
    while position < len(text):
        character = text[position]
        depth += (character in OPENING) - (character in CLOSING)
        found = next((mark for mark in separators if text.startswith(mark, position)), None) if depth <= 0 else None
        if found is None:
            position += 1
            continue
        parts.append((before, text[start:position].strip()))
        position += len(found)
        start, before = position, found
    return [*parts, (before, text[start:].strip())]


def is_wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return False
    depth = 0
    for position, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            return position == len(text) - 1
    return False
