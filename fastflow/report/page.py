"""Renders the page: training runs and evaluations in one self-contained HTML file of at most 5 MB."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastflow.errors import FastflowError
from fastflow.models.pulse import PULSE
from fastflow.report import side_by_side
from fastflow.report.comparison import describe_settings, describe_task
from fastflow.report.coverage import pass_at_plot
from fastflow.report.evaluations import Evaluation, TaskResult
from fastflow.report.files import RunFiles
from fastflow.report.plots import MOST_POINTS, training_plots
from fastflow.report.samples import COLOUR_LEVELS, COLOUR_LIMIT, chosen_samples, have_rewards, last_of
from fastflow.report.tables import alarms, evaluation_table, facts, pass_at_curves, settings, training_table
from fastflow.report.text import printable

MOST_BYTES = 5_000_000
MOST_TASKS = 30  # of all evaluations on the page; more are left out by name
_ROOM = 4000  # bytes for what the page says about the responses that it shows
_FOLDER = Path(__file__).parent


def render(title: str, runs: Sequence[tuple[str, RunFiles]], evaluations: Sequence[Evaluation] = ()) -> str:
    """Render the page as HTML. Each run has a heading, which may be empty where there is one run.

    Raises FastflowError for evaluations that are broken.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    parts, places = _evaluations(evaluations)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    page: dict[str, Any] = {
        "title": printable(title),
        "sections": [_run(f"run{index}", heading, files) for index, (heading, files) in enumerate(runs)],
        "evaluations": parts,
        "levels": COLOUR_LEVELS,
        "limit": COLOUR_LIMIT,
        "script": script if places else "",
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    template, card = environment.get_template("page.html.j2"), environment.get_template("card.html.j2")
    taken = len(template.render(page).encode()) if places else 0

    def draw(entry: dict[str, Any]) -> str:
        PULSE.work()
        return card.render(card=entry)

    _fill(places, MOST_BYTES - taken, draw)
    return template.render(page)


Place = tuple[Evaluation, TaskResult, dict[str, Any]]


def _fill(places: Sequence[Place], budget: int, draw: Callable[[dict[str, Any]], str]) -> None:
    """Put responses into the tasks' parts of the page. What a small task leaves of its share goes to larger ones."""
    left = budget
    for index, (evaluation, task, part) in enumerate(sorted(places, key=lambda place: _bytes_kept(place[1]))):
        try:
            made = side_by_side.cards(task, part["id"])
        except (KeyError, TypeError, StopIteration) as error:
            raise FastflowError(
                f"the responses in {evaluation.directory} are broken ({error}); remove and evaluate again"
            ) from error
        share = left // (len(places) - index)
        drawn, samples = side_by_side.fitting(made, draw, share - _ROOM)
        part["cards"] = drawn
        part["rule"] = side_by_side.rule(task, evaluation, prompts=len(drawn), of=len(made), samples=samples)
        left -= sum(len(html.encode()) + 1 for html in drawn) + _ROOM


def _bytes_kept(task: TaskResult) -> int:
    return sum(subject.file.stat().st_size for subject in task.compared if subject.file is not None)


def _evaluations(evaluations: Sequence[Evaluation]) -> tuple[list[dict[str, Any]], list[Place]]:
    """Return what the template shows of each evaluation, and the tasks whose responses can be shown."""
    parts: list[dict[str, Any]] = []
    places: list[Place] = []
    room = MOST_TASKS
    for number, evaluation in enumerate(evaluations):
        shown, beyond = evaluation.tasks[:room], evaluation.tasks[room:]
        room -= len(shown)
        tasks = []
        for index, task in enumerate(shown):
            part = describe_task(evaluation, task, f"evaluation{number}-task{index}") | {"cards": [], "rule": ""}
            part["first"], part["last"] = task.compared[0].name, task.compared[-1].name
            tasks.append(part)
            if all(subject.file is not None for subject in task.compared):
                places.append((evaluation, task, part))
        notes = list(evaluation.notes)
        if beyond:
            names = ", ".join(task.title for task in beyond)
            notes.append(f"This page shows {MOST_TASKS} tasks; {evaluation.file.name} has these too: {names}.")
        parts.append({
            "id": f"evaluation{number}",
            "heading": "Evaluation" if len(evaluations) == 1 else f"Evaluation {printable(evaluation.directory.name)}",
            "settings": describe_settings(evaluation),
            "conventions": [(printable(str(name)), printable(str(text)))
                            for name, text in evaluation.conventions.items()],
            "notes": notes,
            "tasks": tasks,
        })  # fmt: skip
    return parts, places


def _run(prefix: str, heading: str, files: RunFiles) -> dict[str, Any]:
    """Collect what the template shows of one run. prefix: makes ids of different runs differ."""
    objective = str(files.config.get("objective", {}).get("name"))
    curves = pass_at_curves(files.evaluation)
    return {
        "id": prefix,
        "heading": printable(heading) or "Training",
        "facts": facts(files),
        "alarms": alarms(files.steps),
        "notes": files.notes,
        "table": evaluation_table(files.evaluation) if files.evaluation else training_table(files.steps),
        "pass_at": [pass_at_plot(curves, f"{prefix}-pass-at")] if curves else [],
        "plots": training_plots(files.steps, objective, prefix),
        "averaged": math.ceil(len(files.steps) / MOST_POINTS),
        "samples": chosen_samples(files.samples),
        "rewarded": have_rewards(last_of(files.samples)),
        "settings": settings(files.config),
    }
