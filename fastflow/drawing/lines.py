"""Lines with bands: in the axes, in the legend, and in words for screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastflow.drawing.figure import COLOURS
from fastflow.drawing.numbers import number
from fastflow.drawing.plot import Legend, Style


@dataclass(frozen=True)
class Line:
    """One line. low, high: the ends of its band, which are its values where there is none. marker: size; 0 for none."""

    name: str
    style: Style
    xs: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    marker: float = 0.0

    @classmethod
    def around(
        cls, name: str, style: Style, xs: Sequence[float], values: Sequence[float], halves: Sequence[float],
        *, marker: float = 0.0, lowest: float = -math.inf, highest: float = math.inf,
    ) -> Line:  # fmt: skip
        """Make a line whose band reaches half its width below and above each value, within lowest and highest."""
        low = [max(lowest, value - half) for value, half in zip(values, halves, strict=True)]
        high = [min(highest, value + half) for value, half in zip(values, halves, strict=True)]
        return cls(name, style, xs, values, low, high, marker)


def draw_lines(axes: Any, lines: Sequence[Line], *, x_name: str, unit: str = "") -> tuple[Legend, str]:
    """Draw the lines. Returns their legend, with the last values, and their first and last values in words.

    x_name: said in front of an x. unit: said behind a value.
    """
    legend, spoken = [], []
    for line in lines:
        colour = COLOURS[line.style.colour]
        if any(low < high for low, high in zip(line.low, line.high, strict=True)):
            axes.fill_between(line.xs, line.low, line.high, color=colour, alpha=0.18, lw=0)
        marks = {"marker": "o", "markersize": line.marker} if line.marker else {}
        axes.plot(line.xs, line.values, color=colour, linestyle=line.style.dashes, linewidth=1.6, **marks)
        first, last = (f"{number(value)}{unit}" for value in (line.values[0], line.values[-1]))
        legend.append((line.name, line.style.colour, line.style.kind, last))
        spoken.append(f"{line.name} {first} at {x_name}{line.xs[0]:.0f}, {last} at {x_name}{line.xs[-1]:.0f}")
    return tuple(legend), "; ".join(spoken)
