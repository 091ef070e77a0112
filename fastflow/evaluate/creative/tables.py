"""Rows of a creative task's table, and the rows that diversity, the judge and the dial add to a graded one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastflow.evaluate.scores import HEADINGS

TableRow = tuple[str, list[str]]
NOTHING = "–"
_DIVERSITY = {
    "semantic": "semantic diversity", "semantic_clipped": "semantic diversity, as published",
    "rouge_l": "ROUGE-L redundancy", "self_bleu": "self-BLEU", "distinct_1": "distinct-1", "distinct_2": "distinct-2",
    "compression": "compression ratio", "vocabulary": "vocabulary",
}  # fmt: skip


def creative_rows(task: dict[str, Any]) -> list[TableRow]:
    """Heading and cells of each row of a creative task."""
    models = task["models"]
    scores = [model["scores"] for model in models]
    shown: list[TableRow] = []
    if any("quality" in entry for entry in scores):
        shown.append(("quality, 0 to 1", [number(entry.get("quality")) for entry in scores]))
        names = dict.fromkeys(name for entry in scores for name in entry.get("criteria", {}))
        shown += [
            (f"grade: {name}", [number(entry.get("criteria", {}).get(name), 2) for entry in scores]) for name in names
        ]
    shown += added_rows(task)
    for name, digits in (("tokens", 1), ("truncated", 3), ("distinct", 3)):
        shown.append((HEADINGS[name], [number(entry[name], digits) for entry in scores]))
    return shown


def added_rows(task: dict[str, Any]) -> list[TableRow]:
    """Rows of diversity, effective alpha, wins, variety of solutions and the judge's cost, where they were measured."""
    models = task["models"]
    scores = [model["scores"] for model in models]
    shown: list[TableRow] = []
    if any("alpha" in entry for entry in scores):
        shown.append(("effective alpha", [number(entry.get("alpha"), 2) for entry in scores]))
    if any("diversity" in entry for entry in scores):
        for name, heading in _DIVERSITY.items():
            cells = [entry.get("diversity", {}).get(name) for entry in scores]
            if any(cells):
                shown.append((heading, [number(cell, 0 if name == "vocabulary" else 3) for cell in cells]))
    if any("variety" in entry for entry in scores):
        shown.append(("variety of right solutions, 1 to 5", [number(entry.get("variety"), 2) for entry in scores]))
    if len(models) > 1:
        for name in ("quality", "semantic", "rouge_l"):
            cells = [model.get("differences", {}).get(name) for model in models]
            if any(cells):
                shown.append((f"{_DIVERSITY.get(name, name)} less the first's, 95 %", ["", *map(_interval, cells[1:])]))
        if any("wins" in model for model in models):
            wins = [model.get("wins", {}).get("win_rate") for model in models]
            shown.append(("wins against the first", ["", *map(number, wins[1:])]))
    shown += _cost(models)
    return shown


def _cost(models: Sequence[dict[str, Any]]) -> list[TableRow]:
    costs = [[entry for entry in _costs(model) if entry] for model in models]
    if not any(costs):
        return []
    sums = [
        {name: sum(entry[name] for entry in of_model) for name in of_model[0]} if of_model else {} for of_model in costs
    ]
    return [
        ("judge: requests", [f"{entry['requests']:,}" if entry else "" for entry in sums]),
        ("judge: tokens read", [f"{entry['prompt_tokens']:,}" if entry else "" for entry in sums]),
        ("judge: tokens written", [f"{entry['completion_tokens']:,}" if entry else "" for entry in sums]),
        ("judge: without a grade", [f"{entry['ungraded']:,}" if entry else "" for entry in sums]),
    ]


def _costs(model: dict[str, Any]) -> list[dict[str, int] | None]:
    scores = model["scores"]
    return [scores.get("judge"), scores.get("variety_judge"), model.get("wins", {}).get("judge")]


def number(entry: dict[str, Any] | None, digits: int = 3) -> str:
    """A mean and its standard error."""
    if entry is None or entry["value"] is None:
        return NOTHING
    error = "" if entry["error"] is None else f" ± {entry['error']:.{digits}f}"
    return f"{entry['value']:.{digits}f}{error}"


def _interval(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return NOTHING
    between = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
    return f"{entry['value']:+.3f}{between}"
