"""Describes one task of an evaluation: the table of base and policy with differences, the plots, and what they show."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of
from fastflow.evaluate.methods.catalogue import PLAIN
from fastflow.evaluate.tables import rows as table_of_results
from fastflow.report.coverage import coverage_plot, coverage_words
from fastflow.report.evaluations import Evaluation, Subject, TaskResult, are_steps
from fastflow.report.histograms import histograms
from fastflow.report.paired import measure_of, paired
from fastflow.report.progress import progress_plot
from fastflow.report.text import printable

_PAIRED = "Small: paired difference from the first column with its 95 % interval; bold where that leaves out 0."


@dataclasses.dataclass(frozen=True)
class Cell:
    """value: with its standard error. difference: from the first column. clear: its interval leaves out 0."""

    value: str
    difference: str = ""
    clear: bool = False


def describe_task(evaluation: Evaluation, task: TaskResult, prefix: str) -> dict[str, Any]:
    """Collect what the template shows of one task, but for its responses. Raises FastflowError for broken results."""
    try:
        plots, notes = _plots(task, prefix, sampled=_is_sampled(evaluation))
        return {
            "id": prefix,
            "title": task.title,
            "graded": _is_graded(task),
            "about": _about(task),
            "columns": [subject.name for subject in task.shown],
            "rows": table_rows(task),
            "caption": _caption(task),
            "words": coverage_words(task.compared) if _is_graded(task) else [],
            "plots": plots,
            "notes": [printable(text) for text in notes],
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = message_of(error, typed=True)
        raise FastflowError(
            f"{evaluation.file} or its responses are broken at the task {task.title} ({reason}); remove the file and "
            "evaluate again"
        ) from error


def describe_settings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return how answers were drawn: (name, value)."""
    shown = []
    for name, value in evaluation.settings.items():
        if isinstance(value, dict):
            known = {key: inner for key, inner in value.items() if inner is not None}
            value = ", ".join(str(inner) if key == "name" else f"{key} {inner}" for key, inner in known.items())
        if isinstance(value, list):
            value = ", ".join(map(repr, value))
        if value is not None and value != "" and (name, value) != ("limit", 0):  # where all questions were asked
            words = {True: "yes", False: "no"} if isinstance(value, bool) else {}
            shown.append((printable(str(name).replace("_", " ")), printable(str(words.get(value, value)))))
    return shown


def table_rows(task: TaskResult) -> list[tuple[str, list[Cell]]]:
    """Rows of the table: those of results.md, with paired differences wherever the responses are there."""

    first, *_ = task.shown
    cells_differ = _is_graded(task) and all(subject.rows for subject in task.shown)
    shown = table_of_results({**task.entry, "models": [subject.entry for subject in task.shown]})
    found = []
    for heading, values in shown:
        if cells_differ and heading.startswith("avg@") and " less the first's" in heading:
            continue  # each cell says it
        cells = [
            _cell(heading, value, subject, first, graded=_is_graded(task))
            for value, subject in zip(values, task.shown, strict=True)
        ]
        found.append((printable(heading), cells))
    return found


def _cell(heading: str, value: str, subject: Subject, first: Subject, *, graded: bool) -> Cell:
    measure = measure_of(heading) if graded and subject is not first and subject.rows and first.rows else None
    if measure is None:
        return Cell(printable(value))
    difference = paired(subject.rows, first.rows, measure[0])
    if difference is None or not any((difference.value, difference.low, difference.high)):
        return Cell(printable(value))
    return Cell(printable(value), difference.show(measure[1]), difference.leaves_out_zero)


def _is_sampled(evaluation: Evaluation) -> bool:
    """Whether the responses are plain samples, and not chosen among several or drawn from another distribution."""
    method = evaluation.settings.get("method")
    return isinstance(method, dict) and method.get("name") == PLAIN


def _plots(task: TaskResult, prefix: str, *, sampled: bool) -> tuple[list[Any], list[str]]:
    drawn, notes = histograms(task.compared, prefix, sampled=sampled)
    coverage = [coverage_plot(task.compared, prefix)] if _is_graded(task) else []
    progress = [progress_plot(task.subjects, prefix)] if are_steps(task.subjects) else []
    return [plot for plot in (*coverage, *drawn, *progress) if plot is not None], notes


def _about(task: TaskResult) -> str:
    """Say what was asked: data, grader, licence."""
    entry = task.entry
    known = {"Data": entry.get("source"), "Grader": entry.get("grader"), "Licence": entry.get("licence")}
    return printable(" ".join(f"{name}: {value}." for name, value in known.items() if value))


def _caption(task: TaskResult) -> str:
    scores = task.shown[0].entry["scores"]
    asked = (
        f"{counted(scores['prompts'], 'prompt')}, {counted(scores['samples'], 'response')} to each. "
        "± is the standard error over prompts."
    )
    left_out = (
        f" {counted(task.left_out, 'model')} in between left out; results.json has them." if task.left_out else ""
    )
    has_pairs = _is_graded(task) and len(task.shown) > 1 and all(subject.rows for subject in task.shown)
    return printable(f"{asked}{f' {_PAIRED}' if has_pairs else ''}{left_out}")


def _is_graded(task: TaskResult) -> bool:
    return task.entry.get("kind") not in ("creative", "rewarded")
