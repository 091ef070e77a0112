"""The same prompt's responses beside each other, base and policy, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastflow.report.evaluations import Evaluation, Row, TaskResult
from fastflow.report.paired import is_right
from fastflow.report.text import HEAD, TAIL, cut, printable

SAMPLES_SHOWN = (4, 2, 1)  # responses of each model to a prompt: the first number whose page fits
_VERDICTS = {"right": "right", "wrong": "wrong", "unparsed": "no answer found", "timed_out": "grading timed out"}
Card = dict[str, Any]


def cards(task: TaskResult, prefix: str) -> list[Card]:
    """Make a card of each prompt: the compared models beside each other, each with all its responses."""
    by_question: dict[int, list[list[Row]]] = {}
    for place, subject in enumerate(task.compared):
        for row in subject.texts():
            columns = by_question.setdefault(row["question"], [[] for _ in task.compared])
            columns[place].append(row)
    made = []
    for number, question in enumerate(sorted(by_question), start=1):
        columns = [sorted(rows, key=lambda row: row["sample"]) for rows in by_question[question]]
        some = next(rows[0] for rows in columns if rows)
        graded = bool(some["verdict"])
        shares = [sum(map(is_right, rows)) / len(rows) if rows else 0.0 for rows in columns]
        lengths = [row["tokens"] or 0 for rows in columns for row in rows]
        made.append({
            "id": f"{prefix}-prompt-{question}",
            "number": number,
            "prompt": cut(str(some["prompt"])),
            "gold": printable(str(some["gold"])) if graded else "",
            "columns": [
                _column(subject.name, rows, graded=graded)
                for subject, rows in zip(task.compared, columns, strict=True)
            ],
            "gain": f"{shares[-1] - shares[0]:.4f}" if graded else "0",
            "right": f"{shares[-1]:.4f}" if graded else "0",
            "longest": max(lengths, default=0),
        })  # fmt: skip
    return made


def _column(name: str, rows: Sequence[Row], *, graded: bool) -> dict[str, Any]:
    right = f"{sum(map(is_right, rows))} of {len(rows)} right" if graded else f"{len(rows)} responses"
    return {"name": name, "right": right, "responses": [_response(row, graded=graded) for row in rows]}


def _response(row: Row, *, graded: bool) -> dict[str, Any]:
    facts = [f"{row['tokens']} tokens"]
    if row["finish_reason"] == "length":
        facts.append("cut at the length limit")
    answer = printable(str(row["answer"] or ""))
    return {
        "number": row["sample"] + 1,
        "verdict": row["verdict"] if row["verdict"] in _VERDICTS else "",
        "told": _VERDICTS.get(row["verdict"], ""),
        "facts": facts,
        "answer": answer[:200] + ("…" if len(answer) > 200 else "") if graded else "",
        "text": cut(str(row["response"])),
    }


def fitting(made: Sequence[Card], draw: Callable[[Card], str], budget: int) -> tuple[list[str], int]:
    """Draw the cards that fit into `budget` bytes. Returns them, and the responses of each model that a card shows.

    First fewer responses to each prompt are shown, then fewer prompts, evenly spread over the task.
    """
    for samples in SAMPLES_SHOWN:
        drawn = [draw(_with_samples(card, samples)) for card in made]
        sizes = [len(html.encode()) for html in drawn]
        if sum(sizes) <= budget:
            return drawn, samples
    for count in range(len(made) - 1, 0, -1):
        chosen = [at * len(made) // count for at in range(count)]
        if sum(sizes[at] for at in chosen) <= budget:
            return [drawn[at] for at in chosen], SAMPLES_SHOWN[-1]
    return [], SAMPLES_SHOWN[-1]


def rule(task: TaskResult, evaluation: Evaluation, *, prompts: int, of: int, samples: int) -> str:
    """Say how many prompts and responses the page shows, by which rule, and where all of them are."""
    drawn = max((subject.entry["scores"].get("samples") or 0 for subject in task.compared), default=0)
    which = f"all {of} prompts" if prompts == of else f"{prompts} of {of} prompts, evenly spread over the task"
    first = f"the first {samples} of" if samples < drawn else "all"
    files = ", ".join(str(subject.entry["responses"]) for subject in task.compared if subject.file is not None)
    return printable(
        f"This page shows {which}, and {first} {drawn} responses of each model to a prompt; of texts with more than "
        f"{HEAD + TAIL} characters the first {HEAD} and the last {TAIL}. It takes as many as fit into 5 MB. "
        f"All responses are kept in {evaluation.directory.name}/: {files}."
    )


def _with_samples(card: Card, samples: int) -> Card:
    columns = [{**column, "responses": column["responses"][:samples]} for column in card["columns"]]
    return {**card, "columns": columns}
