"""The graders by name, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastflow.errors import FastflowError
from fastflow.evaluate.graders.verdict import Verdict

GRADERS = ("math", "choice", "exact", "numeric", "gym")


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
    if item.grader == "math":
        from fastflow.evaluate.graders.mathematics import grade as grade_math

        return grade_math(item.gold, item.response)
    if item.grader == "numeric":
        from fastflow.evaluate.graders.numeric import grade as grade_numeric

        return grade_numeric(item.gold, item.response)
    if item.grader == "choice":
        from fastflow.evaluate.graders.choice import grade as grade_choice

        return grade_choice(item.gold, item.response, item.choices)
    if item.grader == "exact":
        from fastflow.evaluate.graders.exact import grade as grade_exact

        return grade_exact(item.gold, item.response)
    if item.grader == "gym":
        from fastflow.evaluate.graders.gym import grade as grade_entry

        return grade_entry(item.gold, item.response)
    raise FastflowError(f"grader {item.grader!r} is unknown; known are {', '.join(GRADERS)}")


def extract(item: Item) -> str:
    """The answer that the response gives, as its grader reads it; "" where it gives none."""
    if item.grader == "choice":
        from fastflow.evaluate.graders.choice import extract as extract_letters

        return ", ".join(sorted(extract_letters(item.response, item.choices) or ()))
    if item.grader == "exact":
        from fastflow.evaluate.graders.exact import extract as extract_text

        return extract_text(item.response)
    if item.grader == "numeric":
        from fastflow.evaluate.graders.numeric import extract as extract_number

        return extract_number(item.response)
    if item.grader == "gym":
        from fastflow.evaluate.graders.gym import extract as extract_answer

        return extract_answer(item.response)
    from fastflow.evaluate.graders.mathematics import extract as extract_parts

    return ", ".join(extract_parts(item.response))


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
