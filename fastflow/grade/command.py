"""`fastflow grade`: read lines with grader, gold and response, add a verdict to each, count the verdicts."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import TIMEOUT, GraderPool
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.grade.records import read_items
from fastflow.interrupt import stopped
from fastflow.machine import cores
from fastflow.run.bar import Bar
from fastflow.run.console import say
from fastflow.run.logs import show_own_warnings
from fastflow.run.output_file import writing

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

Lines = list[tuple[str, dict[str, Any], Item]]
MOST_WORKERS = 256
QUIET_SECONDS = 10.0  # between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastflow grade`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="JSONL of grader, gold, response (and choices)")
    parser.add_argument("--output", metavar="OUT", type=Path, help="JSONL to write: each line with its verdict")
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=TIMEOUT, help=f"seconds an answer may take (default: {TIMEOUT:g})"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=cores(), help="processes (default: one a core)")


def run(arguments: argparse.Namespace) -> int:
    """Grade the file, write the lines, print the table. Returns 0, whatever the verdicts are.

    Raises FastflowError for a line that cannot be graded, before any is, and where math-verify is missing.
    """
    console = show_own_warnings()  # nothing here needs transformers, which open_console would import
    _check(arguments)
    lines = read_items(arguments.file)
    items = [item for _, _, item in lines]
    verdicts: list[Verdict] = []
    workers = min(arguments.workers, len(items))
    pool = GraderPool({item.grader for item in items}, workers=workers, timeout=arguments.timeout)
    with stopped(lambda: _how_far(verdicts, items, arguments.output)), pool:
        _warn_of_golds(lines, pool)
        with _opened(arguments.output) as output, Bar(console, "grading", len(items)) as bar:
            for (_, record, _), verdict in zip(lines, pool.grade(items), strict=True):
                verdicts.append(verdict)
                _write(output, arguments.output, {**record, "verdict": verdict.value})
                bar.advance()
                bar.line(f"graded {bar.done:,} of {len(items):,}", every=QUIET_SECONDS)
    _print_table(console, items, verdicts)
    told = "give --output OUT for the verdict on each line"
    if arguments.output is not None:
        told = f"the verdict on each line is in {arguments.output}"
    say(console, told)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.timeout < float("inf"):
        raise FastflowError(f"--timeout is {arguments.timeout:g}, but must be above 0 seconds")
    if not 1 <= arguments.workers <= MOST_WORKERS:
        raise FastflowError(f"--workers is {arguments.workers}, but must be from 1 to {MOST_WORKERS}")
    if arguments.output is not None and arguments.output.resolve() == arguments.file.resolve():
        raise FastflowError(f"--output {arguments.output} is the file that is read; choose another")


def _warn_of_golds(lines: Lines, pool: GraderPool) -> None:
    """Say which gold answers do not even equal themselves: nobody can answer them rightly."""
    places = [lines[number][0] for number in pool.unequal_golds([item for _, _, item in lines])]
    if places:
        logger.warning(
            "%s with a gold answer that does not equal itself, so that no response can be right (first: %s); "
            "check the field gold, or take the grader exact",
            counted(len(places), "line"), places[0],
        )  # fmt: skip


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    with file:
        yield file


def _write(file: TextIO | None, path: Path, record: dict[str, Any]) -> None:
    if file is not None:
        with writing(path):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()


def _how_far(verdicts: list[Verdict], items: list[Item], output: Path | None) -> str:
    kept = f"; {output} holds them" if output and verdicts else ""
    return f"stopped after {len(verdicts)} of {counted(len(items), 'line')}{kept}"


def _print_table(console: Console, items: list[Item], verdicts: list[Verdict]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("grader", "lines", *(verdict.value for verdict in Verdict), "share right"):
        table.add_column(heading, justify="left" if heading == "grader" else "right")
    counts = Counter((item.grader, verdict) for item, verdict in zip(items, verdicts, strict=True))
    names = list(dict.fromkeys(item.grader for item in items))
    rows = {name: [counts[name, verdict] for verdict in Verdict] for name in names}
    if len(rows) > 1:
        rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for name, row in rows.items():
        table.add_row(name, f"{sum(row):,}", *(f"{count:,}" for count in row), f"{row[0] / sum(row):.1%}")
    console.print(table)
