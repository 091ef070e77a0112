"""Draws a sweep: a metric's curve for each group with a band over its seeds, and accuracy against diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastflow.report.drawing import COLOURS, make_axes, set_scale, to_svg
from fastflow.report.numbers import number
from fastflow.report.panels import Panel
from fastflow.report.plots import MOST_POINTS, Plot
from fastflow.report.text import printable
from fastflow.sweep.measures import Measure
from fastflow.sweep.results import Estimate, RunResult, curve

_COLOURS = ("blue", "orange", "green", "purple", "muted")
_DASHES: tuple[tuple[str, Any], ...] = (("line", "-"), ("dashed", (0, (5, 2))), ("dotted", (0, (1.2, 1.6))))


@dataclass(frozen=True)
class Style:
    """How a group is drawn everywhere on the page. kind: of its key in a legend."""

    colour: str
    kind: str
    dashes: Any


@dataclass(frozen=True)
class ParetoPoint:
    """One group in the plot of accuracy against diversity. on_front: no other group is better in both."""

    group: str
    diversity: Estimate
    accuracy: Estimate
    on_front: bool


def styles(groups: Sequence[str]) -> dict[str, Style]:
    """Give each group a colour and a line style; after fifteen they repeat."""
    chosen = {}
    for index, group in enumerate(groups):
        kind, dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        chosen[group] = Style(_COLOURS[index % len(_COLOURS)], kind, dashes)
    return chosen


def curve_plot(
    groups: Mapping[str, Sequence[RunResult]], measure: Measure, looks: Mapping[str, Style], prefix: str
) -> Plot | None:
    """Draw a metric of training over the steps. The band is one standard error over seeds. None where no run has it."""
    curves = {name: thinned(curve(runs, measure.metric)) for name, runs in groups.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure, axes = make_axes()
    legend, spoken, drawn = [], [], []
    for name, points in curves.items():
        look, steps = looks[name], [step for step, _ in points]
        means = [measure.scale * entry.value for _, entry in points]
        errors = [measure.scale * (entry.error or 0.0) for _, entry in points]
        low = [mean - error for mean, error in zip(means, errors, strict=True)]
        high = [mean + error for mean, error in zip(means, errors, strict=True)]
        if any(errors):
            axes.fill_between(steps, low, high, color=COLOURS[look.colour], alpha=0.18, lw=0)
        alone = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
        axes.plot(steps, means, color=COLOURS[look.colour], linestyle=look.dashes, linewidth=1.6, **alone)
        drawn += [*low, *high]
        legend.append((printable(name), look.colour, look.kind, number(means[-1])))
        spoken.append(
            f"{printable(name)} {number(means[0])} at step {steps[0]}, {number(means[-1])} at step {steps[-1]}"
        )
    set_scale(
        axes, Panel(measure.metric, measure.title, measure.unit, (), 1.0, measure.from_zero, measure.may_be_log), drawn
    )
    axes.set_xlabel("step")
    unit = ", ".join(filter(None, (measure.unit, "log scale" if axes.get_yscale() == "log" else "")))
    title = printable(measure.title)
    description = f"{title}{', ' if unit else ''}{unit}: {'; '.join(spoken)}"
    return Plot(title, unit, to_svg(figure, prefix), tuple(legend), description)


def pareto_front(points: Mapping[str, tuple[Estimate, Estimate]]) -> list[ParetoPoint]:
    """Mark the groups that no other one beats. points: (diversity, accuracy) of each group; more of both is better.

    >>> one, two = Estimate(1.0, None, 1), Estimate(2.0, None, 1)
    >>> [(point.group, point.on_front) for point in pareto_front({"a": (one, two), "b": (one, one)})]
    [('a', True), ('b', False)]
    """

    def beaten(x: float, y: float) -> bool:
        others = [(a.value, b.value) for a, b in points.values()]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in others)

    return [ParetoPoint(name, x, y, not beaten(x.value, y.value)) for name, (x, y) in points.items()]


def pareto_plot(
    points: Sequence[ParetoPoint], across: Measure, up: Measure, looks: Mapping[str, Style], prefix: str
) -> Plot:
    """Draw accuracy (up) against diversity (across) with standard errors; a line joins the Pareto front."""
    figure, axes = make_axes()
    front = sorted((point for point in points if point.on_front), key=lambda point: point.diversity.value)
    axes.plot(
        [across.scale * point.diversity.value for point in front], [up.scale * point.accuracy.value for point in front],
        color=COLOURS["grid"], linewidth=1.2, zorder=1,
    )  # fmt: skip
    legend, spoken = [], []
    for point in points:
        look = looks[point.group]
        x, y = across.scale * point.diversity.value, up.scale * point.accuracy.value
        axes.errorbar(
            [x], [y], xerr=[across.scale * (point.diversity.error or 0)], yerr=[up.scale * (point.accuracy.error or 0)],
            color=COLOURS[look.colour], marker="o", markersize=6, elinewidth=1.2,
            markerfacecolor=COLOURS[look.colour] if look.kind == "line" else "none",
        )  # fmt: skip
        front_note = ", on the front" if point.on_front else ""
        legend.append((printable(point.group), look.colour, "line", f"{number(y)} at {number(x)}"))
        spoken.append(f"{printable(point.group)} {number(y)} at {number(x)}{front_note}")
    axes.set_xlabel(f"{across.title.lower()}, {across.unit}")
    title = f"{up.title} against {across.title[:1].lower()}{across.title[1:]}"
    return Plot(title, up.unit, to_svg(figure, prefix), tuple(legend), f"{title}: {'; '.join(spoken)}")


def thinned(points: Sequence[tuple[int, Estimate]]) -> list[tuple[int, Estimate]]:
    """Keep at most MOST_POINTS points, the last one among them."""
    stride = -(-len(points) // MOST_POINTS) or 1
    return [point for index, point in enumerate(points) if (len(points) - 1 - index) % stride == 0]
