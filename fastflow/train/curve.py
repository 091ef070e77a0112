"""What the evaluations of a run came to, over its steps: RUN/evaluations, in the files of `fastflow evaluate`.

results.json, results.md     each evaluated step as a model, "step 0", "step 20": measures, difference from the first
responses/TASK-step-20-*     every response with its grade, one parquet file for each task and step
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastflow.config.schema import Config
from fastflow.errors import FastflowError, message_of
from fastflow.evaluate import responses, scores
from fastflow.evaluate.conditions import drawn_by, in_key, sampling, with_newer
from fastflow.evaluate.keys import key_of
from fastflow.evaluate.methods.catalogue import PLAIN
from fastflow.evaluate.results import RESPONSES, RESULTS_FILE, TABLE_FILE
from fastflow.evaluate.tables import markdown
from fastflow.evaluate.task import Task
from fastflow.models.pulse import PULSE
from fastflow.run.directory import EVALUATIONS
from fastflow.run.durable import replace_json, replace_text
from fastflow.run.evaluated import metrics_of
from fastflow.run.output_file import writing

logger = logging.getLogger(__name__)

MOST_COLUMNS = 8  # of results.md: the first step and the last ones
Rows = Sequence[responses.Row]


class Evaluated(NamedTuple):
    """One evaluation. of_task: by its name the scores, their difference from the first, and the responses' file."""

    step: int
    of_task: dict[str, dict[str, Any]]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The scores as metrics of the run."""
        found: dict[str, float | None] = {}
        for task, entry in self.of_task.items():
            found |= metrics_of(task, entry["scores"])
        return found


class Curve:
    """The evaluations of a run in the order of their steps, and their files, which one rank keeps."""

    def __init__(self, run: Path, tasks: Sequence[Task], config: Config):
        self.evaluated: list[Evaluated] = []
        self._directory, self._tasks, self._config = run / EVALUATIONS, tasks, config
        self._first: dict[str, Rows] = {}  # what the differences are taken from

    def add(self, step: int, rows: Mapping[str, Rows], questions: Mapping[str, Sequence[str]]) -> None:
        """Keep an evaluation on the disk. rows: of each task, as `grade_part` makes them. questions: as JSON."""
        of_task = {}
        with writing(self._directory):
            for name, of_one in rows.items():
                PULSE.work()
                store = self._store(name, step, questions[name])
                responses.write(store.file, of_one)
                of_task[name] = {
                    "scores": scores.score(of_one), "responses": f"{RESPONSES}/{store.file.name}",
                    **({"difference": self._difference(name, of_one)} if self.evaluated else {}),
                }  # fmt: skip
            if not self.evaluated:
                self._first = {name: _verdicts(of_one) for name, of_one in rows.items()}
            self.evaluated.append(Evaluated(step, of_task))
            self._write()

    def take_up(self, step: int) -> None:
        """Read what an earlier process evaluated, up to this step; remove what it evaluated after it."""
        with writing(self._directory):
            self.evaluated = [one for one in self._read() if one.step <= step]
            kept = {entry["responses"] for one in self.evaluated for entry in one.of_task.values()}
            for file in (self._directory / RESPONSES).glob("*"):
                if f"{RESPONSES}/{file.name}" not in kept:
                    file.unlink()
            self._write()
        for name, entry in self.evaluated[0].of_task.items() if self.evaluated else ():
            try:
                self._first[name] = _verdicts(responses.read(self._directory / entry["responses"]))
            except FastflowError as error:
                logger.warning("%s; later evaluations show no intervals of their difference from the first", error)

    def _difference(self, name: str, rows: Rows) -> dict[str, float | None]:
        if name in self._first:
            return scores.difference(rows, self._first[name])
        before, now = self.evaluated[0].of_task[name]["scores"], scores.score(rows)
        measure = scores.main_measure(now)
        value = now[measure]["value"] - before[measure]["value"]
        return {"value": value, "error": None, "low": None, "high": None}

    def _store(self, name: str, step: int, questions: Sequence[str]) -> responses.Store:
        key = key_of([step, in_key(self._settings()), list(questions)])
        return responses.Store(self._directory / RESPONSES, f"{name}-step-{step}", key)

    def _settings(self) -> dict[str, Any]:
        settings, data, rollout = self._config.eval, self._config.data, self._config.rollout
        return {
            "samples": settings.samples, **sampling(settings),
            "max_tokens": settings.max_response_tokens or rollout.max_response_tokens, "seed": settings.seed,
            "limit": settings.limit, "chat_template": data.chat_template,
            "template_arguments": data.template_arguments, "system": data.system,
            **drawn_by(rollout, self._config.model), "method": {"name": PLAIN}, "seeds": responses.SEEDS,
            "every": settings.every,
        }  # fmt: skip

    def _write(self) -> None:
        if not self.evaluated:
            for name in (RESULTS_FILE, TABLE_FILE):
                (self._directory / name).unlink(missing_ok=True)
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        shown = self.evaluated
        if len(shown) > MOST_COLUMNS:
            shown = [shown[0], *shown[1 - MOST_COLUMNS :]]
        replace_json(self._directory / RESULTS_FILE, self._results(self.evaluated))
        replace_text(self._directory / TABLE_FILE, markdown(self._results(shown)))

    def _results(self, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
        tasks = [
            {**task.facts(), "plot": None, "models": [
                {"name": f"step {one.step}", "step": one.step, **one.of_task[task.name]} for one in evaluated
            ]}
            for task in self._tasks
        ]  # fmt: skip
        return {
            "settings": self._settings(),
            "conventions": scores.conventions({task.kind for task in self._tasks}),
            "tasks": tasks,
        }

    def _read(self) -> list[Evaluated]:
        file = self._directory / RESULTS_FILE
        if not file.is_file():
            return []
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            found: dict[int, dict[str, Any]] = {}
            for task in tree["tasks"]:
                for entry in task["models"]:
                    kept = {name: entry[name] for name in ("scores", "responses", "difference") if name in entry}
                    found.setdefault(entry["step"], {})[task["name"]] = kept
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FastflowError(
                f"{file} cannot be read ({message_of(error, typed=True)}); remove {file.parent}, and the run goes on "
                "with new evaluations"
            ) from error
        self._warn_of_changes(file, tree.get("settings") or {})
        names = {task.name for task in self._tasks}
        if any(of_task.keys() != names for of_task in found.values()):
            logger.warning("%s holds evaluations of other tasks than eval.tasks, which are removed", file)
        return [Evaluated(step, found[step]) for step in sorted(found) if found[step].keys() == names]

    def _warn_of_changes(self, file: Path, before: Mapping[str, Any]) -> None:
        now, before = self._settings(), with_newer(before)
        changed = [name for name in now if name != "every" and before.get(name) != now[name]]
        if changed:
            logger.warning(
                "%s holds evaluations with other settings than those to come (%s); do not read a difference between "
                "them as progress",
                file, ", ".join(changed),
            )  # fmt: skip


class Best(NamedTuple):
    """The best value of a metric among evaluations, and how many came after it."""

    step: int
    value: float
    since: int


def best_of(evaluated: Sequence[Evaluated], metric: str, direction: str) -> Best | None:
    """The first evaluation with the best value; None where none has one. direction: highest or lowest."""
    sign = -1 if direction == "lowest" else 1
    values = [(one.step, one.metrics.get(metric)) for one in evaluated]
    known = [(step, value) for step, value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    step, value = max(known, key=lambda entry: sign * entry[1])  # the first of several
    return Best(step, value, sum(one.step > step for one in evaluated))


def _verdicts(rows: Rows) -> Rows:
    """What a difference is taken from."""
    return [{name: row[name] for name in ("question", "verdict", "reward")} for row in rows]
