"""Reads a run directory: its files as tables and lists, and what is missing or broken in them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastflow.config import yaml_file
from fastflow.drawing.numbers import is_number
from fastflow.errors import FastflowError, message_of
from fastflow.report.text import printable
from fastflow.run.directory import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, SAMPLES_FILE, STATUS_FILE


@dataclasses.dataclass
class RunFiles:
    """The content of a run directory. notes: what a reader should know about missing or broken parts."""

    config: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluation: dict[str, dict[str, Any]]
    notes: list[str] = dataclasses.field(default_factory=list)


def read_run(run: Path) -> RunFiles:
    """Read a run directory.

    Raises FastflowError if the directory, or its metrics.jsonl, is missing, empty or broken before its last line.
    """
    if not run.is_dir():
        raise FastflowError(f"{run}: no such run directory; give the directory of a run (run.output)")
    if not (run / METRICS_FILE).is_file():
        raise FastflowError(f"{run} has no {METRICS_FILE}; give the directory of a run (run.output)")
    notes: list[str] = []
    # a resumed run may repeat steps: the later line counts
    steps = {record["step"]: record for record in _read_lines(run / METRICS_FILE, notes)}
    if not steps:
        raise FastflowError(f"{run / METRICS_FILE} holds no complete step yet; wait for the first one, or train again")
    if not (run / CONFIG_FILE).is_file():
        notes.append(f"There is no {CONFIG_FILE}, so this page shows no settings.")
    if why_early := _why_early(run / STATUS_FILE):
        notes.append(f"The run {printable(why_early)}.")
    samples = _read_lines(run / SAMPLES_FILE, notes) if (run / SAMPLES_FILE).is_file() else []
    return RunFiles(
        config=_read_tree(run / CONFIG_FILE),
        steps=[steps[step] for step in sorted(steps)],
        samples=samples,
        evaluation=_read_tree(run / EVALUATION_FILE),
        notes=notes,
    )


def _why_early(status: Path) -> str:
    """The sentence of a run that stopped early; empty for others, and where the file is missing or broken."""
    try:
        return str(json.loads(status.read_text(encoding="utf-8"))["stopped_early"] or "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _read_lines(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines = [(at, line) for at, line in enumerate(_read_text(file).split("\n"), start=1) if line.strip()]
    records = []
    for at, line in lines:
        try:
            record = json.loads(line, parse_constant=lambda _: None)
            if not isinstance(record, dict) or not is_number(record.get("step")):
                raise ValueError("not an object with a step")
            records.append(record)
        except (ValueError, RecursionError) as error:
            if at != lines[-1][0]:
                raise FastflowError(f"{file}, line {at} is broken ({error}); mend or remove that line") from error
            notes.append(f"The last line of {file.name} is incomplete, as after a killed run; this page leaves it out.")
    return records


def _read_tree(file: Path) -> dict[str, dict[str, Any]]:
    """Read a YAML or JSON file of named tables; {} where it is missing."""
    if not file.is_file():
        return {}
    try:
        tree = json.loads(_read_text(file)) if file.suffix == ".json" else yaml_file.load(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise FastflowError(f"{file} is broken ({message_of(error)}); mend or remove it") from error
    if not isinstance(tree, dict) or not all(isinstance(table, dict) for table in tree.values()):
        raise FastflowError(f"{file} must hold named tables of values; mend or remove it")
    return tree


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FastflowError(f"cannot read {file}: {error.strerror}; check its permissions") from error
