"""`fastflow report`: writes one self-contained HTML file about a run or an evaluation, from its files alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastflow.report.evaluations import evaluations_of, find_evaluations, has_results
from fastflow.report.files import read_run
from fastflow.report.page import render
from fastflow.run.directory import METRICS_FILE, REPORT_FILE
from fastflow.run.logs import open_console
from fastflow.run.output_file import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastflow report`."""
    parser.add_argument(
        "directory", metavar="RUN", type=Path, help="directory of a run (run.output) or of an evaluation (--output)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="page to write (default: RUN/report.html)")
    parser.add_argument(
        "--evaluation", metavar="DIR", type=Path, action="append", default=[],
        help="evaluation to show beside the run, or a directory of several; may be given more than once "
        "(RUN/evaluations is always shown)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its path. Returns the exit code."""
    open_console()
    directory: Path = arguments.directory
    is_run = (directory / METRICS_FILE).exists() or not has_results(directory)
    write = write_report if is_run else write_evaluation
    print(write(directory, arguments.output, arguments.evaluation))
    return 0


def write_report(run: Path, output: Path | None = None, evaluations: Sequence[Path] = ()) -> Path:
    """Write the report of one run directory, by default to its report.html. Returns the file.

    evaluations: directories to show beside those in RUN/evaluations. Raises FastflowError if a directory, or the run's
    metrics.jsonl, is missing, empty or broken before its last line.
    """
    files = read_run(run)
    own = evaluations_of(run)
    seen = {evaluation.directory.resolve() for evaluation in own}
    given = [one for one in find_evaluations(evaluations) if one.directory.resolve() not in seen]
    return _write(render(run.resolve().name, [("", files)], [*own, *given]), output or run / REPORT_FILE)


def write_evaluation(directory: Path, output: Path | None = None, more: Sequence[Path] = ()) -> Path:
    """Write the report of an evaluation, by default to its report.html. more: evaluations to show after it.

    Returns the file. Raises FastflowError if there is no evaluation, or a broken one.
    """
    page = render(directory.resolve().name, [], find_evaluations([directory, *more]))
    return _write(page, output or directory / REPORT_FILE)


def write_combined(title: str, runs: list[tuple[str, Path]], output: Path) -> Path:
    """Write one report of several runs, each a (heading, run directory). Returns the file. Raises as write_report."""
    return _write(render(title, [(name, read_run(path)) for name, path in runs]), output)


def _write(page: str, output: Path) -> Path:
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    return output
