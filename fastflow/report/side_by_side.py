"""The same prompt's responses beside each other, base and policy, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastflow.counted import counted
from fastflow.evaluate.scores import ResponseRow, by_question, is_right
from fastflow.report.evaluations import Evaluation, TaskResult
from fastflow.report.text import HEAD, TAIL, cut, printable

SAMPLES_SHOWN = (4, 2, 1)  # responses of each model to a prompt: the first number whose page fits
MOST_OF_ANSWER = 200  # characters
_VERDICTS = {"right": "right", "wrong": "wrong", "unparsed": "no answer found", "timed_out": "grading timed out"}
Card = dict[str, Any]


def cards(task: TaskResult, prefix: str) -> list[Card]:
    """Make a card of each prompt: the compared models beside each other, each with its first responses."""
    texts = [by_question(subject.texts(SAMPLES_SHOWN[0])) for subject in task.compared]
    counted = [by_question(subject.rows) for subject in task.compared]
    made = []
    for number, question in enumerate(sorted(set().union(*texts)), start=1):
        columns = [sorted(of_model.get(question, []), key=lambda row: row["sample"]) for of_model in texts]
        every = [of_model.get(question, []) for of_model in counted]
        some = next(rows[0] for rows in columns if rows)
        graded = bool(some["verdict"])
        shares = [sum(map(is_right, rows)) / len(rows) if rows and graded else 0.0 for rows in every]
        made.append({
            "id": f"{prefix}-prompt-{question}",
            "number": number,
            "prompt": cut(str(some["prompt"])),
            "gold": _short(str(some["gold"])) if graded else "",
            "columns": [
                {"name": subject.name, "right": _right(of_model, graded=graded),
                 "responses": [_response(row, graded=graded) for row in rows]}
                for subject, rows, of_model in zip(task.compared, columns, every, strict=True)
            ],
            "gain": f"{shares[-1] - shares[0]:.4f}",
            "right": f"{shares[-1]:.4f}",
            "longest": max((row["tokens"] or 0 for rows in every for row in rows), default=0),
        })  # fmt: skip
    return made


def _right(rows: Sequence[ResponseRow], *, graded: bool) -> str:
    return f"{sum(map(is_right, rows))} of {len(rows)} right" if graded else counted(len(rows), "response")


def _short(answer: str) -> str:
    return printable(answer[:MOST_OF_ANSWER]) + ("…" if len(answer) > MOST_OF_ANSWER else "")


def _response(row: ResponseRow, *, graded: bool) -> dict[str, Any]:
    facts = [counted(row["tokens"], "token")]
    if row["finish_reason"] == "length":
        facts.append("cut at the length limit")
    return {
        "number": row["sample"] + 1,
        "verdict": row["verdict"] if row["verdict"] in _VERDICTS else "",
        "told": _VERDICTS.get(row["verdict"], ""),
        "facts": facts,
        "answer": _short(str(row["answer"] or "")) if graded else "",
        "text": cut(str(row["response"])),
    }


def fitting(made: Sequence[Card], draw: Callable[[Card], str], budget: int) -> tuple[list[str], int]:
    """Draw the cards that fit into `budget` bytes. Returns them, and how many responses of each model a card shows.

    First fewer responses to each prompt are shown, then fewer prompts, evenly spread over the task.
    """
    chosen: list[Card] = []
    for samples in SAMPLES_SHOWN:
        chosen = [_with_samples(card, samples) for card in made]
        if sum(map(_least_bytes, chosen)) <= budget:
            drawn = [draw(card) for card in chosen]
            if _bytes(drawn) <= budget:
                return drawn, samples
    least = sum(map(_least_bytes, chosen))
    count = min(len(chosen), len(chosen) * max(budget, 0) // max(least, 1))
    while count > 0:
        drawn = [draw(chosen[at * len(chosen) // count]) for at in range(count)]
        if (taken := _bytes(drawn)) <= budget:
            return drawn, SAMPLES_SHOWN[-1]
        count = min(count - 1, count * budget // taken)
    return [], SAMPLES_SHOWN[-1]


def _least_bytes(card: Card) -> int:
    """The texts of a card without their markup: it is never smaller."""
    texts = [card["prompt"], *(entry["text"] for column in card["columns"] for entry in column["responses"])]
    return sum(len(head) + len(tail) for head, _, tail in texts)


def _bytes(drawn: Sequence[str]) -> int:
    return sum(len(html.encode()) + 1 for html in drawn)


def rule(task: TaskResult, evaluation: Evaluation, *, prompts: int, of: int, samples: int) -> str:
    """Say how many prompts and responses the page shows, by which rule, and where all of them are."""
    drawn = max((subject.entry["scores"].get("samples") or 0 for subject in task.compared), default=0)
    which = (
        f"all of {counted(of, 'prompt')}"
        if prompts == of
        else f"{prompts} of {of} prompts, evenly spread over the task"
    )
    first = f"the first {samples} of" if samples < drawn else "all of"
    files = ", ".join(str(subject.entry["responses"]) for subject in task.compared if subject.file is not None)
    return printable(
        f"This page shows {which}, and {first} {counted(drawn, 'response')} of each model to a prompt; of texts with "
        f"more than {HEAD + TAIL} characters the first {HEAD} and the last {TAIL}. It takes as many as fit into 5 MB. "
        f"All responses are kept in the folder {evaluation.directory.name}: {files}."
    )


def _with_samples(card: Card, samples: int) -> Card:
    columns = [{**column, "responses": column["responses"][:samples]} for column in card["columns"]]
    return {**card, "columns": columns}
