"""Finds and reads evaluations: directories with results.json of `fastflow evaluate`, and the responses beside it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastflow.drawing.numbers import is_number
from fastflow.errors import FastflowError, need
from fastflow.evaluate.results import RESULTS_FILE
from fastflow.evaluate.scores import ResponseRow
from fastflow.report.text import printable
from fastflow.run.directory import EVALUATIONS

MOST_SHOWN = 8  # models of a table: the first and the last ones, as of a run that was evaluated at many steps
MOST_COMPARED = 4  # models whose curves and responses stand side by side
_COUNTED = ("question", "sample", "verdict", "vote_class", "tokens", "finish_reason", "well_formed", "logprob")
_READ = ("question", "sample", "prompt", "gold", "response", "answer", "verdict", "tokens", "finish_reason")


@dataclass(frozen=True)
class Subject:
    """One model of a task. name: short, fit for HTML. entry: its part of results.json. file: of its responses."""

    name: str
    entry: dict[str, Any]
    file: Path | None

    @functools.cached_property
    def rows(self) -> list[ResponseRow]:
        """What measures need of each response; [] where no file is there."""
        return [] if self.file is None else _read_rows(self.file, _COUNTED)

    def texts(self, samples: int) -> list[ResponseRow]:
        """What people read of the first responses to each prompt, so many of them. They are not kept in memory."""
        return [] if self.file is None else _read_rows(self.file, _READ, [("sample", "<", samples)])


@dataclass(frozen=True)
class TaskResult:
    """One task. shown: the models of the table. compared: those whose curves and responses are shown, the base first.

    entry: the task's part of results.json. left_out: models that are in results.json alone.
    """

    entry: dict[str, Any]
    subjects: Sequence[Subject]
    shown: Sequence[Subject]
    compared: Sequence[Subject]

    @property
    def title(self) -> str:
        return printable(str(self.entry.get("title") or self.entry.get("name") or "Task"))

    @property
    def left_out(self) -> int:
        return len(self.subjects) - len(self.shown)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. notes: what a reader should know about missing parts."""

    directory: Path
    settings: dict[str, Any]
    conventions: dict[str, Any]
    tasks: Sequence[TaskResult]
    notes: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.directory / RESULTS_FILE


def has_results(directory: Path) -> bool:
    """Whether a directory is an evaluation."""
    return (directory / RESULTS_FILE).is_file()


def find_evaluations(directories: Iterable[Path]) -> list[Evaluation]:
    """Read the evaluations in each directory: itself, otherwise its folders by name. Raises FastflowError for one
    without any, and for broken results.
    """
    found: dict[Path, Evaluation] = {}
    for directory in directories:
        if not directory.is_dir():
            raise FastflowError(f"{directory}: no such directory; give the --output of a fastflow evaluate")
        places = [directory] if has_results(directory) else sorted(filter(has_results, directory.iterdir()))
        if not places:
            raise FastflowError(f"{directory} holds no {RESULTS_FILE}; give the --output of a fastflow evaluate")
        found |= {place.resolve(): read_evaluation(place) for place in places if place.resolve() not in found}
    return list(found.values())


def evaluations_of(run: Path) -> list[Evaluation]:
    """Read what a run evaluated while it trained, and evaluations that were put into its directory."""
    directory = run / EVALUATIONS
    if not directory.is_dir() or not (has_results(directory) or any(map(has_results, directory.iterdir()))):
        return []
    return find_evaluations([directory])


def read_evaluation(directory: Path) -> Evaluation:
    """Read one evaluation; its responses are read when they are needed. Raises FastflowError where it is broken."""
    file = directory / RESULTS_FILE
    try:
        tree = json.loads(file.read_text(encoding="utf-8", errors="replace"), parse_constant=lambda _: None)
    except OSError as error:
        raise FastflowError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise FastflowError(f"{file} is broken ({error}); remove it and evaluate again") from error
    if not isinstance(tree, dict) or not _are_tables(tree.get("tasks")):
        raise FastflowError(
            f"{file} is no result of fastflow evaluate; give the directory of a run or of an evaluation "
            "(a sweep has its own page, report.html in its directory)"
        )
    notes: list[str] = []
    tasks = [_task(directory, entry, notes) for entry in tree["tasks"]]
    settings, conventions = (tree.get(name) for name in ("settings", "conventions"))
    return Evaluation(
        directory,
        settings if isinstance(settings, dict) else {},
        conventions if isinstance(conventions, dict) else {},
        tasks,
        notes,
    )


def _task(directory: Path, entry: dict[str, Any], notes: list[str]) -> TaskResult:
    models = entry.get("models")
    if not _are_tables(models) or not models or not all(isinstance(model.get("scores"), dict) for model in models):
        raise FastflowError(f"{directory / RESULTS_FILE} names a task without scores; remove it and evaluate again")
    names = short_names([str(model.get("name", "")) for model in models])
    subjects = [
        Subject(printable(name), model, _responses(directory, model)) for name, model in zip(names, models, strict=True)
    ]
    shown = _first_and_last(subjects, MOST_SHOWN)
    compared = _first_and_last(subjects, 2 if are_steps(subjects) else MOST_COMPARED)
    title = printable(str(entry.get("title") or entry.get("name")))
    missing = [subject.name for subject in shown if subject.file is None]
    if missing:
        notes.append(
            f"{title}: no responses of {', '.join(missing)} are there, so that their paired differences, histograms "
            "and responses are left out. The same evaluation, run again, names their files; nothing is sampled twice."
        )
    elif (reason := _cannot_read()) is not None:
        notes.append(f"{title}: {reason}")
        subjects, shown, compared = (
            [Subject(one.name, one.entry, None) for one in group] for group in (subjects, shown, compared)
        )
    return TaskResult(entry, subjects, shown, compared)


def are_steps(subjects: Sequence[Subject]) -> bool:
    """Whether the models are one policy at several steps of its training."""
    return len(subjects) > 1 and all(is_number(subject.entry.get("step")) for subject in subjects)


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out the folders that all names begin with.

    >>> short_names(["runs/sums/base", "runs/sums/alpha_4"])
    ['base', 'alpha_4']
    """
    parts = [name.split("/") for name in names]
    common = 0
    while len(names) > 1 and all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return ["/".join(part[common:]) for part in parts]


def _first_and_last(subjects: Sequence[Subject], most: int) -> list[Subject]:
    return list(subjects) if len(subjects) <= most else [subjects[0], *subjects[1 - most :]]


def _responses(directory: Path, model: dict[str, Any]) -> Path | None:
    """The file of a model's responses, which lies in the evaluation's directory; None where it is not there."""
    name = model.get("responses")
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    file = (directory / name).resolve()
    return directory / name if file.is_relative_to(directory.resolve()) and file.is_file() else None


def _cannot_read() -> str | None:
    try:
        need("pyarrow.parquet", extra="eval", purpose="showing the responses")
    except FastflowError as error:
        return f"the responses are left out: {error}."
    return None


def _read_rows(file: Path, columns: Sequence[str], filters: Any = None) -> list[ResponseRow]:
    parquet = need("pyarrow.parquet", extra="eval", purpose="showing the responses")
    try:
        present = parquet.read_schema(file).names
        if absent := [name for name in columns if name not in present]:
            raise FastflowError(f"{file} has no column {absent[0]}; remove it and evaluate again")
        rows = parquet.read_table(file, columns=list(columns), filters=filters).to_pylist()
    except (OSError, ValueError) as error:
        raise FastflowError(f"cannot read {file}: {error}; remove it and evaluate again") from error
    return [dict(row) for row in rows]


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
