"""What the files of an evaluation are called, and what results.json says of a task beside its measures."""

from __future__ import annotations

from typing import Any

from fastflow.evaluate.task import Task

RESULTS_FILE, TABLE_FILE, RESPONSES = "results.json", "results.md", "responses"


def facts(task: Task) -> dict[str, Any]:
    """What the results say of a task beside its measures."""
    source = " ".join(filter(None, (task.dataset or task.path, task.subset, task.split if task.dataset else "")))
    return {
        "name": task.name, "title": task.title or task.name, "source": source, "grader": task.grader or task.reward,
        "licence": task.licence, "note": task.note, "kind": task.kind, "rubric": task.rubric,
    }  # fmt: skip
