"""Writes numbers with their nouns: 1 prompt, 2 prompts."""

from __future__ import annotations


def counted(count: float, noun: str, form: str = "") -> str:
    """Return the number, in the format `form`, with its noun in the singular or the plural.

    >>> counted(1, "prompt"), counted(0, "prompt"), counted(1200, "entry", ",")
    ('1 prompt', '0 prompts', '1,200 entries')
    """
    number = format(count, form)
    if number == "1":
        return f"{number} {noun}"
    if noun.endswith("y") and noun[-2] not in "aeo":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{number} {noun}s"
