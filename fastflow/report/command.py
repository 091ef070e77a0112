"""`fastflow report`: writes one self-contained HTML file about a run, from the files in its directory alone."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from fastflow.errors import FastflowError
from fastflow.report.files import RunFiles, read_run
from fastflow.report.plots import MOST_POINTS, pass_at_plot, training_plots
from fastflow.report.samples import COLOUR_LEVELS, COLOUR_LIMIT, chosen_samples
from fastflow.report.tables import alarms, evaluation_table, facts, pass_at_curves, settings, training_table
from fastflow.report.text import printable

__all__ = ["RunFiles", "add_arguments", "read_run", "render", "run", "write_combined", "write_report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastflow report`."""
    parser.add_argument("directory", metavar="RUN", type=Path, help="directory of a run (run.output)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="page to write (default: RUN/report.html)")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its path. Returns the exit code."""
    print(write_report(arguments.directory, arguments.output))
    return 0


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of one run directory, by default to its report.html. Returns the file.

    Raises FastflowError if the directory, or its metrics.jsonl, is missing, empty or broken before its last line.
    """
    from fastflow.run.directory import REPORT_FILE

    page = render(run.resolve().name, [("", read_run(run))])
    return _write(page, output or run / REPORT_FILE)


def write_combined(title: str, runs: list[tuple[str, Path]], output: Path) -> Path:
    """Write one report of several runs, each a (heading, run directory). Returns the file. Raises as write_report."""
    return _write(render(title, [(name, read_run(path)) for name, path in runs]), output)


def render(title: str, runs: list[tuple[str, RunFiles]]) -> str:
    """Render the page as HTML. Each run has a heading, which may be empty where there is one run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sections = [_section(f"run{index}", heading, files) for index, (heading, files) in enumerate(runs)]
    template = environment.get_template("page.html.j2")
    return template.render(title=printable(title), sections=sections, levels=COLOUR_LEVELS, limit=COLOUR_LIMIT)


def _section(prefix: str, heading: str, files: RunFiles) -> dict[str, Any]:
    """Collect what the template shows of one run. prefix: makes ids of different runs differ."""
    objective = str(files.config.get("objective", {}).get("name"))
    curves = pass_at_curves(files.evaluation)
    return {
        "id": prefix,
        "heading": printable(heading),
        "facts": facts(files),
        "alarms": alarms(files.steps),
        "notes": files.notes,
        "table": evaluation_table(files.evaluation) if files.evaluation else training_table(files.steps),
        "pass_at": [pass_at_plot(curves, prefix)] if curves else [],
        "plots": training_plots(files.steps, objective, prefix),
        "averaged": math.ceil(len(files.steps) / MOST_POINTS),
        "samples": chosen_samples(files.samples),
        "settings": settings(files.config),
    }


def _write(page: str, output: Path) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FastflowError(f"cannot write {output}: {error.strerror}; choose another --output") from error
    return output
