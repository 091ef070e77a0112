"""`fastflow sweep`: trains with every combination of some settings, then writes one page about all runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.interrupt import RunStopped
from fastflow.run.console import say
from fastflow.run.directory import CONFIG_FILE
from fastflow.run.lock import RunLock
from fastflow.sweep.board import Board
from fastflow.sweep.ledger import STATE_FILE, Ledger
from fastflow.sweep.page import PAGE_FILE, RESULTS_FILE, TABLE_FILE, Outcome, write
from fastflow.sweep.request import SweepRequest
from fastflow.sweep.results import read_results
from fastflow.sweep.runner import LOGS, Runner
from fastflow.sweep.runs import Run

if TYPE_CHECKING:
    from rich.console import Console


def run(request: SweepRequest, console: Console) -> int:
    """Carry out a sweep, or the rest of one. Returns the exit code: 1 where a run failed or a verdict is missed.

    Raises FastflowError for what would stop a run, before the first of them.
    """
    check_output(request.output)
    if request.departures:
        say(
            console,
            f"{', '.join(request.departures)}: not the study's own settings, about which it makes its claims; verdicts "
            "may miss for that reason",
        )
    if request.dry_run:
        list_runs(request, console)
        return 0
    with RunLock(request.output, "--output"):
        if request.study is not None:
            request.study.make_inputs(request.output, console)
        check_runs(request)
        ledger = Ledger(request.output)
        done = [run for run in request.runs if ledger.is_done(run)]
        say(
            console,
            f"{counted(len(request.runs), 'run')} in {counted(len(request.groups), 'group')}, {len(done)} done "
            f"already, {request.jobs} at once; what they print is in {request.output / LOGS}",
        )
        failed = carry_out(request, console, ledger, done)
        return conclude(request, console, failed)


def list_runs(request: SweepRequest, console: Console) -> None:
    """Check all that can be checked without the study's inputs, and print one line for each run."""
    if request.study is None:
        check_runs(request)
    for number, entry in enumerate(request.runs, start=1):
        steps = f"{entry.group}; seed {entry.config.run.seed}, {counted(entry.config.run.steps, 'step')}"
        say(console, f"{number:>{len(str(len(request.runs)))}}  {entry.name}: {steps}")
    runs, groups = counted(len(request.runs), "run"), counted(len(request.groups), "group")
    say(console, f"{runs} in {groups}, in {request.output}")


def check_output(output: Path) -> None:
    """Raise FastflowError for a directory in which a sweep would replace somebody else's files."""
    if (output / CONFIG_FILE).exists():
        raise FastflowError(f"--output {output} is the directory of a run; choose another for the sweep")
    ours = [name for name in (PAGE_FILE, RESULTS_FILE, TABLE_FILE) if (output / name).exists()]
    if ours and not (output / STATE_FILE).exists():
        raise FastflowError(f"--output {output} holds {ours[0]}, which is not a sweep's; choose another directory")


def check_runs(request: SweepRequest) -> None:
    """Raise FastflowError for missing models, data, functions and packages of any run; equal ones are read once."""
    from fastflow.data import is_file
    from fastflow.train.dry_run import check_inputs

    checked = set()
    for entry in request.runs:
        config = entry.config
        needs = repr((config.model, config.data, config.objective, config.run.tensorboard, config.run.wandb))
        if needs in checked:
            continue
        checked.add(needs)
        try:
            check_inputs(config)
            if not request.dry_run and is_file(config.data) and not os.path.exists(config.data.path):
                raise FastflowError(f"data file {config.data.path} does not exist; check data.path")
        except FastflowError as error:
            raise FastflowError(f"run {entry.name}: {error}") from error


def carry_out(request: SweepRequest, console: Console, ledger: Ledger, done: Sequence[Run]) -> dict[str, str]:
    """Carry out the runs. Returns why some failed, by their names. Raises RunStopped after a signal."""
    study = request.study

    def measure(entry: Run) -> None:
        if study is not None:
            study.measure(entry.directory, request.output)

    with Board(console, request.runs, done) as board:
        runner = Runner(request, board, ledger, measure)
        try:
            runner.run()
        except KeyboardInterrupt as stop:
            raise RunStopped(f"{stop or 'interrupted'}; the same command goes on with this sweep", stop) from stop
    return runner.failed


def conclude(request: SweepRequest, console: Console, failed: dict[str, str]) -> int:
    """Write the page, print verdicts and failures. Returns the exit code."""
    results, notes = read_results([entry for entry in request.runs if entry.directory.exists()])
    finished = {result.name for result in results} - set(failed)
    unfinished: dict[str, list[str]] = {}
    for entry in request.runs:
        if entry.name not in finished:
            unfinished.setdefault(entry.group, []).append(entry.name)
    verdicts = request.study.judge(results, unfinished) if request.study is not None else []
    states = [
        (entry.name, "failed" if entry.name in failed else "done", failed.get(entry.name, "")) for entry in request.runs
    ]
    title = request.study.title if request.study is not None else request.output.resolve().name
    if request.departures:
        title += f", with {', '.join(request.departures)}"
    outcome = Outcome(title, results, states, verdicts, request.metrics)
    page = write(outcome, request.output)
    for line in (
        *notes,
        *(f"no run recorded the metric {name}" for name in outcome.missing()),
        *map(str, verdicts),
        *(f"{name} failed: {reason}; see {request.output / LOGS / name}.txt" for name, reason in failed.items()),
        f"report written to {page}",
    ):
        say(console, line)
    return 1 if failed or not all(verdict.met for verdict in verdicts) else 0
