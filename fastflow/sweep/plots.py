"""Draws a sweep: a metric's curve for each group with a band over its seeds, and accuracy against diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastflow.drawing.figure import make_axes, set_scale, to_svg
from fastflow.drawing.lines import Line, draw_lines
from fastflow.drawing.pareto import Point, pareto_plot
from fastflow.drawing.plot import Plot, Style
from fastflow.report.plots import MOST_POINTS
from fastflow.report.text import printable
from fastflow.sweep.measures import Measure
from fastflow.sweep.results import RunResult, SeedMean, curve


def curve_plot(
    groups: Mapping[str, Sequence[RunResult]], measure: Measure, looks: Mapping[str, Style], prefix: str
) -> Plot | None:
    """Draw a metric of training over the steps. The band is one standard error over seeds. None where no run has it."""
    curves = {name: thinned(curve(runs, measure.metric)) for name, runs in groups.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    lines = []
    for name, points in curves.items():
        steps = [step for step, _ in points]
        means = [measure.scale * entry.value for _, entry in points]
        errors = [measure.scale * (entry.error or 0.0) for _, entry in points]
        marker = 3.0 if len(steps) == 1 else 0.0
        lines.append(Line.around(printable(name), looks[name], steps, means, errors, marker=marker))
    figure, axes = make_axes()
    legend, spoken = draw_lines(axes, lines, x_name="step ")
    drawn = [value for line in lines for value in (*line.low, *line.high)]
    set_scale(axes, drawn, from_zero=measure.from_zero, may_be_log=measure.may_be_log)
    axes.set_xlabel("step")
    unit = ", ".join(filter(None, (measure.unit, "log scale" if axes.get_yscale() == "log" else "")))
    title = printable(measure.title)
    description = f"{title}{', ' if unit else ''}{unit}: {spoken}"
    return Plot(title, unit, to_svg(figure, prefix), legend, description)


def traded_plot(
    points: Mapping[str, tuple[SeedMean, SeedMean]], across: Measure, up: Measure, looks: Mapping[str, Style]
) -> Plot:
    """Draw accuracy (up) against diversity (across). points: (diversity, accuracy) of each group."""
    shown = [
        Point(
            printable(name), across.scale * x.value, up.scale * y.value, across.scale * (x.error or 0),
            up.scale * (y.error or 0),
        )
        for name, (x, y) in points.items()
    ]  # fmt: skip
    title = f"{up.title} against {across.title[:1].lower()}{across.title[1:]}"
    of_shown = {printable(name): look for name, look in looks.items()}
    x_label = f"{across.title.lower()}, {across.unit}"
    return pareto_plot(shown, of_shown, "pareto", title=title, unit=up.unit, x_label=x_label)


def thinned(points: Sequence[tuple[int, SeedMean]]) -> list[tuple[int, SeedMean]]:
    """Keep at most MOST_POINTS points, the last one among them."""
    stride = -(-len(points) // MOST_POINTS) or 1
    return [point for index, point in enumerate(points) if (len(points) - 1 - index) % stride == 0]
