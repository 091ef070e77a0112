"""Writes numbers with their nouns, 1 prompt or 2 prompts, and bytes with their unit."""

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


def sized(count: float) -> str:
    """Return bytes with their unit.

    >>> sized(3 * 2**29), sized(2**29), sized(5 * 2**20), sized(12288)
    ('1.50 GiB', '0.50 GiB', '5.0 MiB', '12.0 KiB')
    """
    for unit, power, form in (("GiB", 30, ".2f"), ("MiB", 20, ".1f")):
        if abs(count) >= 0.1 * 2**power:
            return f"{count / 2**power:{form}} {unit}"
    return f"{count / 2**10:.1f} KiB"
