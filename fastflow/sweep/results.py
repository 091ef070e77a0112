"""What the runs of a sweep came to: their curves and last values, averaged over the seeds of a group."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastflow.drawing.numbers import is_number
from fastflow.errors import FastflowError
from fastflow.report.files import read_run
from fastflow.sweep.runs import Run

LAST_STEPS = 5  # steps whose mean is a run's last value; fewer where a run has fewer than ten


@dataclass(frozen=True)
class RunResult:
    """One run that wrote at least one step. steps: its metrics. evaluation: of its policy, base: of what it began with;
    both are empty where nothing was evaluated.
    """

    name: str
    group: str
    seed: int
    steps: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, float]
    base: Mapping[str, float]

    def last(self, metric: str) -> float | None:
        """Return the metric's mean over the last steps that recorded it; None without any."""
        count = max(1, min(LAST_STEPS, len(self.steps) // 2))
        return mean_of(self.steps[-count:], metric)

    def at(self, step: int, metric: str) -> float | None:
        """Return the metric's mean over the last steps up to `step`; None where the run did not come so far."""
        if not self.steps or self.steps[-1]["step"] < step:
            return None
        return mean_of([record for record in self.steps if step - LAST_STEPS < record["step"] <= step], metric)


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds. error: its standard error; None for one seed."""

    value: float
    error: float | None
    seeds: int


def read_results(runs: Sequence[Run]) -> tuple[list[RunResult], list[str]]:
    """Read what the runs wrote. Returns the results, and a note for each run without any."""
    results, notes = [], []
    for run in runs:
        try:
            files = read_run(run.directory)
        except FastflowError as error:
            notes.append(f"{run.name}: {error}")
            continue
        tables = list(files.evaluation.values())
        policy, base = (_numbers(tables[-1]), _numbers(tables[0])) if tables else ({}, {})
        base = base if len(tables) > 1 else {}
        results.append(RunResult(run.name, run.group, run.config.run.seed, files.steps, policy, base))
    return results, notes


def by_group(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each group, in the order of the sweep."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def seed_mean(values: Sequence[float | None]) -> SeedMean | None:
    """Return mean and standard error over the seeds that have a value; None where none has."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return SeedMean(statistics.fmean(known), error, len(known))


def final(runs: Sequence[RunResult], metric: str) -> SeedMean | None:
    """Return a group's last value of a metric of training."""
    return seed_mean([run.last(metric) for run in runs])


def evaluated(runs: Sequence[RunResult], metric: str) -> SeedMean | None:
    """Return a group's value of a metric that was measured on its policies after training."""
    return seed_mean([run.evaluation.get(metric) for run in runs])


def curve(runs: Sequence[RunResult], metric: str) -> list[tuple[int, SeedMean]]:
    """Return (step, mean over seeds) for every step at which some run of the group recorded the metric."""
    values: dict[int, list[float | None]] = {}
    for run in runs:
        for record in run.steps:
            if is_number(record.get(metric)):
                values.setdefault(record["step"], []).append(float(record[metric]))
    found = [(step, seed_mean(values[step])) for step in sorted(values)]
    return [(step, entry) for step, entry in found if entry is not None]


def mean_of(steps: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Return the mean over the steps that recorded a metric; None without any."""
    known = [float(record[metric]) for record in steps if is_number(record.get(metric))]
    return statistics.fmean(known) if known else None


def _numbers(table: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in table.items() if is_number(value)}
