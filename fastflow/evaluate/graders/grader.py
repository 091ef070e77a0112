"""The graders by name, and what each needs.

VERSION is raised when verdicts change: then an evaluation does not take verdicts that an earlier one kept.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from fastflow.errors import FastflowError
from fastflow.evaluate.graders.verdict import Verdict

_MODULES = {"math": "mathematics", "choice": "choice", "exact": "exact", "numeric": "numeric", "gym": "gym"}
GRADERS = tuple(_MODULES)
VERSION = 1  # of the verdicts


@dataclass(frozen=True)
class Item:
    """What is graded. gold: for `gym` an entry as JSON. choices: text by letter, for `choice` only."""

    grader: str
    gold: str
    response: str
    choices: dict[str, str] = field(default_factory=dict)

    def as_message(self) -> dict[str, Any]:
        """The item as JSON takes it."""
        return {"grader": self.grader, "gold": self.gold, "response": self.response, "choices": self.choices}


def grade(item: Item) -> Verdict:
    """The verdict, computed here and now. Only `pool` bounds the time and memory that it may take."""
    verdict: Verdict = _module(item).grade(item.gold, item.response, *_options(item))
    return verdict


def extract(item: Item) -> str:
    """The answer that the response gives, as its grader reads it; "" where it gives none."""
    found = _module(item).extract(item.response, *_options(item))
    if item.grader == "choice":
        return ", ".join(sorted(found or ()))
    return ", ".join(found) if item.grader == "math" else str(found)


def _module(item: Item) -> ModuleType:
    """Import what grades the item: each grader reads other things, and some take long to import."""
    if item.grader not in _MODULES:
        raise FastflowError(f"grader {item.grader!r} is unknown; known are {', '.join(GRADERS)}")
    return importlib.import_module(f"fastflow.evaluate.graders.{_MODULES[item.grader]}")


def _options(item: Item) -> tuple[dict[str, str], ...]:
    return (item.choices,) if item.grader == "choice" else ()


def with_gold_as_response(item: Item) -> Item | None:
    """The item with its own gold answer as the response, which has to be right; None where it has only a verifier."""
    if item.grader == "gym":
        from fastflow.evaluate.graders.gym import own_answer

        answer = own_answer(item.gold)
        return None if answer is None else Item(item.grader, item.gold, f"<answer>{answer}</answer>")
    if item.grader == "choice":
        return Item(item.grader, item.gold, f"Answer: {item.gold}", item.choices)
    from fastflow.evaluate.graders.gold import behind_mark, in_solution

    answer = behind_mark(item.gold) if item.grader == "exact" else in_solution(item.gold)
    return Item(item.grader, item.gold, f"\\boxed{{{answer}}}")
