"""Accuracy or quality against diversity: a point for each model, and a line along those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastflow.drawing.figure import COLOURS, make_axes, to_svg
from fastflow.drawing.numbers import number
from fastflow.drawing.plot import Plot, Style


@dataclass(frozen=True)
class Point:
    """One model or group. x_error, y_error: standard errors; 0 where there is none."""

    name: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


def front(points: Sequence[Point]) -> list[int]:
    """Return the points that no other beats: none is at least as good in both and better in one. In order of x.

    >>> front([Point("a", 1, 2), Point("b", 1, 1), Point("c", 0, 3)])
    [2, 0]
    """

    def is_beaten(point: Point) -> bool:
        return any(
            other.x >= point.x and other.y >= point.y and (other.x > point.x or other.y > point.y) for other in points
        )

    kept = [place for place, point in enumerate(points) if not is_beaten(point)]
    return sorted(kept, key=lambda place: (points[place].x, place))


def pareto_plot(
    points: Sequence[Point], looks: Mapping[str, Style], prefix: str, *, title: str, unit: str, x_label: str,
    numbered: bool = False,
) -> Plot:  # fmt: skip
    """Draw the points with bars of one standard error. numbered: write the number of each beside it.

    looks: of each point by its name. unit: of y. prefix: of the ids in the SVG.
    """
    figure, axes = make_axes(counts=False)
    best = front(points)
    axes.plot(
        [points[at].x for at in best], [points[at].y for at in best], color=COLOURS["grid"], linewidth=1.2, zorder=1
    )
    legend, spoken = [], []
    for place, point in enumerate(points):
        look = looks[point.name]
        axes.errorbar(
            [point.x], [point.y], xerr=[point.x_error], yerr=[point.y_error], color=COLOURS[look.colour], marker="o",
            markersize=6, elinewidth=1.2, markerfacecolor=COLOURS[look.colour] if look.kind == "line" else "none",
        )  # fmt: skip
        if numbered:
            axes.annotate(
                str(place + 1), (point.x, point.y), (4, 3), textcoords="offset points", color=COLOURS["muted"]
            )
        told = f"{number(point.y)} at {number(point.x)}"
        legend.append((point.name, look.colour, "line", told))
        spoken.append(f"{point.name} {told}{', on the front' if place in best else ''}")
    axes.set_xlabel(x_label)
    return Plot(title, unit, to_svg(figure, prefix), tuple(legend), f"{title}: {'; '.join(spoken)}")
