"""The runs of a sweep with their settings, each read as `fastflow train` reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastflow.config import yaml_file
from fastflow.config.reader import read_config, to_yaml
from fastflow.config.schema import Config, sections
from fastflow.errors import FastflowError
from fastflow.sweep.grid import Cell

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """One run of a sweep. directory: its run.output. group: what it changes besides the seed, in words."""

    name: str
    group: str
    directory: Path
    config: Config


def read_runs(
    cells: Sequence[Cell], base: Mapping[str, Any], options: Sequence[str], output: Path, file: Path | None
) -> tuple[Run, ...]:
    """Read the settings of each run by the reader of `fastflow train`. A refusal names the run."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="fastflow-sweep-") as folder:
        merged = Path(folder) / "settings.yaml"
        for cell in cells:
            directory = output / RUNS / cell.name
            words = [*options, *cell.options, f"--run.output={directory}"]
            try:
                if base or cell.settings:
                    merged.write_text(yaml_file.dump(_merged(base, cell.settings)), encoding="utf-8")
                    words = [f"--config={merged}", *words]
                config, _ = read_config(words)
                config.require_inputs()
            except FastflowError as error:
                reason = (
                    str(error)
                    .replace(str(merged), str(file or "the sweep"))
                    .replace("fastflow train", "fastflow sweep")
                )
                raise FastflowError(f"run {cell.name}: {reason}") from error
            runs.append(Run(cell.name, cell.group, directory, config))
    _check_different(runs)
    return tuple(runs)


def _check_different(runs: Sequence[Run]) -> None:
    """Refuse two runs with the same settings, such as those of 1 and 1.0: they would count as two groups."""
    known: dict[str, str] = {}
    for run in runs:
        config = replace(run.config, run=replace(run.config.run, output=""))
        first = known.setdefault(to_yaml(config), run.name)
        if first != run.name:
            raise FastflowError(f"the runs {first} and {run.name} have the same settings; leave one of them out")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others. Both hold sections and dotted names; the result holds each section once.

    The settings' reader would take a section for the whole of it, and forget what stood beside it by dotted names.
    """
    tree: dict[str, Any] = {}
    for name, value in (*base.items(), *changes.items()):
        section, _, entry = str(name).partition(".")
        if section in sections() and not entry and value is None:
            continue
        if section in sections() and (entry or isinstance(value, dict)):
            within = tree.setdefault(section, {})
            if isinstance(within, dict):
                within.update({entry: value} if entry else value)
                continue
        tree[name] = value
    return tree
