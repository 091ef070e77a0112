"""Evaluations as `fastflow evaluate` leaves them, of rows that are made up here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastflow.evaluate import responses, scores
from fastflow.evaluate.tables import markdown

SETTINGS = {
    "samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 48, "seed": 0, "limit": 0, "chat_template": False,
    "system": None, "engine": "local", "method": {"name": "sample"},
}  # fmt: skip


def row(question: int, sample: int, *, right: bool, **changes: Any) -> dict[str, Any]:
    """One graded response."""
    return {
        "question": question, "source": f"held_out.jsonl:{question + 1}", "prompt": f"question {question}?",
        "gold": "7", "sample": sample, "seed": sample, "response": f"response {question}.{sample}",
        "tokens": 10 + sample, "finish_reason": "stop", "logprob": -5.0 - sample, "answer": "7" if right else "8",
        "verdict": "right" if right else "wrong", "well_formed": True, "vote_class": 0 if right else 1,
        "sampled_tokens": 10 + sample, "read_tokens": 0, "written": None, "policy_logprob": None, "base_logprob": None,
        "prompt_ids": [question], "response_ids": [sample], "reward": None,
    } | changes  # fmt: skip


def rows_of(*prompts: str, **changes: Any) -> list[dict[str, Any]]:
    """Rows from a word for each prompt, a letter a sample: R is right, others are wrong."""
    return [
        row(question, sample, right=letter == "R", **changes)
        for question, word in enumerate(prompts)
        for sample, letter in enumerate(word)
    ]


def write_evaluation(
    directory: Path,
    models: Mapping[str, Sequence[dict[str, Any]]],
    *,
    task: str = "sums",
    steps: bool = False,
    names_files: bool = True,
) -> Path:
    """Write results.json, results.md and the responses of models on one task. steps: they are one policy's steps."""
    entries, first = [], next(iter(models.values()))
    for number, (name, rows) in enumerate(models.items()):
        file = Path("responses") / f"{task}-{number}-0123456789ab.parquet"
        responses.write(directory / file, rows)
        entry: dict[str, Any] = {"name": name, "scores": scores.score(rows)}
        if number:
            entry["difference"] = scores.difference(rows, first)
        if names_files:
            entry["responses"] = str(file)
        if steps:
            entry["step"] = 10 * number
        entries.append(entry)
    about = {"name": task, "title": task.title(), "source": "held_out.jsonl", "grader": "numeric", "licence": None,
             "note": None, "kind": "graded", "rubric": None, "plot": None}  # fmt: skip
    samples = entries[0]["scores"]["samples"]
    results = {
        "settings": SETTINGS | {"samples": samples}, "conventions": scores.CONVENTIONS,
        "tasks": [{**about, "models": entries}],
    }  # fmt: skip
    (directory / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (directory / "results.md").write_text(markdown(results), encoding="utf-8")
    return directory
