"""Draws the report's curves.

The template sets titles, units and legends as HTML, so that they wrap on a phone and a screen reader reads them aloud.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from fastflow.drawing.figure import COLOURS, make_axes, set_scale, to_svg
from fastflow.drawing.numbers import is_number, number
from fastflow.drawing.plot import Plot
from fastflow.report.panels import Panel, panels

NOISE = 1e-6  # share of the largest value in a plot, below which a mean is shown as zero
MOST_POINTS = 300  # points of a curve; longer runs are averaged


def training_plots(steps: list[dict[str, Any]], objective: str, prefix: str) -> list[tuple[str, list[Plot]]]:
    """Draw the curves of a run in named groups, without metrics that were never recorded. prefix: of the SVG ids."""
    columns = _metric_columns(steps)
    groups = []
    for name, group in panels(objective):
        plots = [plot for panel in group if (plot := _training_plot(panel, columns, f"{prefix}-{panel.name}"))]
        if plots:
            groups.append((name, plots))
    return groups


def _metric_columns(steps: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Collect metrics by name, with NaN for missing values, averaged down to MOST_POINTS."""
    names = {key for record in steps for key, value in record.items() if is_number(value)}
    columns = {
        name: [float(record[name]) if is_number(record.get(name)) else math.nan for record in steps] for name in names
    }
    if {"residual_mean", "residual_std"} <= names:
        pairs = list(zip(columns["residual_mean"], columns["residual_std"], strict=True))
        columns["residual_low"] = [mean - spread for mean, spread in pairs]
        columns["residual_high"] = [mean + spread for mean, spread in pairs]
    return {name: _average_down(values) for name, values in columns.items()}


def _average_down(values: list[float]) -> list[float]:
    if len(values) <= MOST_POINTS:
        return values
    cuts = [round(index * len(values) / MOST_POINTS) for index in range(MOST_POINTS + 1)]
    parts = [_finite(values[start:end]) for start, end in itertools.pairwise(cuts)]
    return [sum(part) / len(part) if part else math.nan for part in parts]


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _training_plot(panel: Panel, columns: dict[str, list[float]], prefix: str) -> Plot | None:
    known = {name: [value * panel.scale for value in values] for name, values in columns.items()}
    marks = [
        mark for mark in panel.marks if all(_finite(known.get(key, [])) for key in (mark.key, mark.high or mark.key))
    ]
    if not marks:
        return None
    drawn = [value for mark in marks for key in mark.keys for value in _finite(known[key])]
    noise = 0.0 if panel.may_be_log else NOISE * max(map(abs, drawn))
    steps, legend, spoken, base = columns["step"], [], [], [0.0] * len(columns["step"])
    figure, axes = make_axes()
    for mark in marks:
        values, colour = known[mark.key], COLOURS[mark.colour]
        if mark.kind == "band":
            axes.fill_between(steps, values, known[mark.high], color=colour, alpha=0.18, lw=0)
            legend.append((mark.label, mark.colour, mark.kind, ""))
            continue
        if mark.kind == "area":
            top = [low + (value if math.isfinite(value) else 0.0) for low, value in zip(base, values, strict=True)]
            axes.fill_between(steps, base, top, color=colour, alpha=0.75, lw=0)
            base = top
        elif mark.kind == "dashed":
            axes.plot(steps, values, color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
        else:
            axes.plot(steps, values, color=colour, marker="o", markersize=3, markevery=_isolated(values))
        ends = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        percent = " %" if panel.unit == "%" else ""
        told = [number(value if abs(value) >= noise else 0.0) + percent for _, value in ends]
        legend.append((mark.label, mark.colour, mark.kind, told[-1]))
        spoken.append(f"{mark.label} {told[0]} at step {ends[0][0]:.0f}, {told[-1]} at step {ends[-1][0]:.0f}")
    set_scale(axes, drawn, from_zero=panel.from_zero, may_be_log=panel.may_be_log)
    axes.set_xlabel("step")
    unit = panel.unit + (", log scale" if axes.get_yscale() == "log" else "")
    description = f"{panel.title}, {unit}: {'; '.join(spoken)}"
    return Plot(panel.title, unit, to_svg(figure, prefix), tuple(legend), description)


def _isolated(values: list[float]) -> list[bool]:
    """Find points without a neighbour, which a line alone would not show."""
    padded = [math.nan, *values, math.nan]
    return [not (math.isfinite(padded[at]) or math.isfinite(padded[at + 2])) for at in range(len(values))]
