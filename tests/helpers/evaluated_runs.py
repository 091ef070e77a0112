"""Tiny runs that are evaluated while they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastflow.evaluate.responses import read
from resumed_runs import configure

QUESTIONS, SAMPLES = 3, 2


def write_task(home: Path, name: str = "own") -> Path:
    """Questions of the grader exact; a fourth is beyond the limit."""
    file = home / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"c{n}", "answer": str(n)}) + "\n" for n in range(QUESTIONS + 1)))
    return file


def evaluated(home: Path, **changes: object):
    """The settings of a run of five steps that is evaluated every two."""
    defaults = {
        "run__steps": 5, "run__save_every": 2, "run__keep": 9, "run__samples_every": 1, "eval__every": 2,
        "eval__tasks": f"[{write_task(home)}]", "eval__grader": "exact", "eval__samples": SAMPLES,
        "eval__limit": QUESTIONS, "eval__max_response_tokens": 8,
    }  # fmt: skip
    return configure(home, **{**defaults, **changes})


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluations" / "results.json").read_text())


def entries_of(run: Path, task: int = 0) -> dict[int, dict[str, Any]]:
    """The evaluations of a task by their step."""
    return {entry["step"]: entry for entry in results_of(run)["tasks"][task]["models"]}


def rows_of(run: Path, step: int) -> list[dict[str, Any]]:
    return read(run / "evaluations" / entries_of(run)[step]["responses"])
