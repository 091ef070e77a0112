"""Writes what a sweep came to: report.html, one self-contained page; results.json and results.md beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastflow.drawing.numbers import is_number
from fastflow.drawing.plot import styles
from fastflow.report.text import printable
from fastflow.run.durable import replace_json, replace_text
from fastflow.run.evaluated import averages_of
from fastflow.run.output_file import writing
from fastflow.sweep.measures import ACCURACY, DIVERSITY, USUAL, Measure, measure_of
from fastflow.sweep.plots import curve_plot, traded_plot
from fastflow.sweep.results import RunResult, SeedMean, by_group, evaluated, final
from fastflow.sweep.study import StudyVerdict

PAGE_FILE, RESULTS_FILE, TABLE_FILE = "report.html", "results.json", "results.md"
_TRADED = ("reward_mean", "sequence_entropy")  # of training, where nothing was evaluated
ERROR_NOTE = "± is one standard error over seeds."


@dataclass(frozen=True)
class Outcome:
    """All that the page shows. states: (run, state, remark). metrics: that were asked for; empty for
    the usual ones, with the avg@n of evaluations during training."""

    title: str
    results: Sequence[RunResult]
    states: Sequence[tuple[str, str, str]]
    verdicts: Sequence[StudyVerdict] = ()
    metrics: Sequence[str] = ()

    @property
    def groups(self) -> dict[str, list[RunResult]]:
        return by_group(self.results)

    def trained(self) -> list[Measure]:
        """Return the metrics of training that are shown and that some run recorded."""
        recorded = {
            name for run in self.results for record in run.steps for name, value in record.items() if is_number(value)
        }
        shown = self.metrics or (*averages_of(recorded), *USUAL)
        return [measure_of(name) for name in shown if name in recorded]

    def measured(self) -> list[Measure]:
        """Return the metrics of the policies' evaluations."""
        return [measure_of(name) for name in dict.fromkeys(name for run in self.results for name in run.evaluation)]

    def missing(self) -> list[str]:
        """Return the metrics that were asked for and that no run recorded."""
        found = {measure.metric for measure in self.trained()}
        return [name for name in self.metrics if name not in found]


def write(outcome: Outcome, output: Path) -> Path:
    """Write the three files. Returns the page. Raises FastflowError where the disk takes no more."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        replace_json(output / RESULTS_FILE, as_json(outcome))
        replace_text(output / TABLE_FILE, markdown(outcome))
        replace_text(output / PAGE_FILE, render(outcome))
    return output / PAGE_FILE


def render(outcome: Outcome) -> str:
    """Render the page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import fastflow.report.command as report

    folders = [Path(__file__).parent, Path(report.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    groups, looks = outcome.groups, styles(list(outcome.groups))
    curves = [
        plot
        for place, measure in enumerate(outcome.trained())
        if (plot := curve_plot(groups, measure, looks, f"curve-{place}"))
    ]
    return environment.get_template("sweep.html.j2").render(
        title=printable(outcome.title),
        facts=[("Runs", len(outcome.states)), ("Groups", len(groups)),
               ("Seeds", len({run.seed for run in outcome.results})),
               ("Done", sum(state == "done" for _, state, _ in outcome.states))],
        verdicts=[(verdict.met, *map(printable, (verdict.claim, verdict.found, verdict.bar)))
                  for verdict in outcome.verdicts],
        problems=[(printable(name), printable(state), printable(remark))
                  for name, state, remark in outcome.states if state != "done"],
        missing=[printable(name) for name in outcome.missing()],
        tables=[_table(*entry) for entry in _tables(outcome)],
        pareto=_pareto(outcome),
        curves=curves,
        error_note=ERROR_NOTE,
    )  # fmt: skip


def markdown(outcome: Outcome) -> str:
    """Write verdicts, tables and what failed as Markdown."""
    lines = [f"# {_cell(outcome.title)}", ""]
    if outcome.verdicts:
        lines += ["## Verdicts", "", *(f"- {_cell(str(verdict))}" for verdict in outcome.verdicts), ""]
    for title, measures, rows in _tables(outcome):
        heads = [_cell(", ".join(filter(None, (measure.title, measure.unit)))) for measure in measures]
        lines += [f"## {title}", "", ERROR_NOTE, "", f"| runs | seeds | {' | '.join(heads)} |"]
        lines.append("|---|---:|" + "---:|" * len(measures))
        for name, seeds, cells in rows:
            lines.append(f"| {_cell(name)} | {seeds} | {' | '.join(map(_shown, measures, cells))} |")
        lines.append("")
    if problems := [entry for entry in outcome.states if entry[1] != "done"]:
        lines += ["## Runs that are not done", ""]
        lines += [
            f"- {_cell(name)}: {_cell(': '.join(filter(None, (state, remark))))}" for name, state, remark in problems
        ]
        lines.append("")
    return "\n".join(lines)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return all figures of the tables, and those of each run, for other programs."""
    groups = {
        name: {
            "runs": [run.name for run in runs],
            "training": {measure.metric: _plain(final(runs, measure.metric)) for measure in outcome.trained()},
            "evaluation": {measure.metric: _plain(evaluated(runs, measure.metric)) for measure in outcome.measured()},
        }
        for name, runs in outcome.groups.items()
    }
    runs = [
        {"name": run.name, "group": run.group, "seed": run.seed, "steps": len(run.steps),
         "training": {measure.metric: run.last(measure.metric) for measure in outcome.trained()},
         "evaluation": dict(run.evaluation)}
        for run in outcome.results
    ]  # fmt: skip
    states = [dict(zip(("run", "state", "remark"), entry, strict=True)) for entry in outcome.states]
    return {
        "title": outcome.title, "verdicts": [asdict(verdict) for verdict in outcome.verdicts], "groups": groups,
        "runs": runs, "states": states,
    }  # fmt: skip


TableRow = tuple[str, int, list[SeedMean | None]]


def _tables(outcome: Outcome) -> list[tuple[str, list[Measure], list[TableRow]]]:
    """Return (title, metrics, rows) of the tables that have something to show."""
    tables: list[tuple[str, list[Measure], list[TableRow]]] = []
    for title, measures, value in (
        ("After training", outcome.measured(), evaluated),
        ("Last steps of training", outcome.trained(), final),
    ):
        rows = [(name, len(runs), [value(runs, measure.metric) for measure in measures])
                for name, runs in outcome.groups.items()]  # fmt: skip
        if measures and rows:
            tables.append((title, measures, rows))
    return tables


def _table(title: str, measures: Sequence[Measure], rows: Sequence[TableRow]) -> dict[str, Any]:
    shown = [(printable(name), seeds, list(map(_shown, measures, cells))) for name, seeds, cells in rows]
    return {"title": title, "columns": [(printable(m.title), m.unit) for m in measures], "rows": shown}


def _pareto(outcome: Outcome) -> list[Any]:
    """Draw accuracy against diversity after training; without both, the reward against the entropy of the last steps.

    Returns [] where neither is there.
    """
    groups, looks = outcome.groups, styles(list(outcome.groups))
    evaluations = {name for run in outcome.results for name in run.evaluation}
    training = {name for run in outcome.results for name in _TRADED if run.last(name) is not None}
    for names, value, ups, acrosses in (
        (evaluations, evaluated, ACCURACY, DIVERSITY),
        (training, final, _TRADED[:1], _TRADED[1:]),
    ):
        up, across = (next((name for name in known if name in names), None) for known in (ups, acrosses))
        if up is None or across is None:
            continue
        points = {name: (value(runs, across), value(runs, up)) for name, runs in groups.items()}
        known = {name: (x, y) for name, (x, y) in points.items() if x is not None and y is not None}
        return [traded_plot(known, measure_of(across), measure_of(up), looks)] if known else []
    return []


def _shown(measure: Measure, cell: SeedMean | None) -> str:
    return "–" if cell is None else measure.show(cell.value, cell.error)  # noqa: RUF001


def _plain(entry: SeedMean | None) -> Mapping[str, Any] | None:
    return None if entry is None else asdict(entry)


def _cell(text: str) -> str:
    """Keep text on one line of a Markdown table, as text."""
    return " ".join(printable(text).split()).replace("|", "\\|").replace("<", "&lt;")
