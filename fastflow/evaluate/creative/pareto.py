"""Quality against diversity: one SVG with a point for each model, and a line along those that no other beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 52
LINE = 18  # pixels between lines of the legend
_STYLE = (
    "svg{--ink:#1f2933;--soft:#7b8794;--line:#e4e7eb;--dot:#2563a8;--front:#c2571a;background:#fff}"
    "@media (prefers-color-scheme: dark){svg{--ink:#e4e7eb;--soft:#9aa5b1;--line:#3e4c59;--dot:#7ab3ef;--front:#f0a26b;"
    "background:#1f2933}}text{font:13px system-ui,sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}"
    ".grid{stroke:var(--line)}.bar{stroke:var(--dot);opacity:.45}.front{stroke:var(--front);fill:none;"
    "stroke-width:1.5;stroke-dasharray:5 4}circle{fill:var(--dot)}.on{fill:var(--front)}.in{fill:#fff;font-size:11px}"
)


@dataclass(frozen=True)
class Point:
    """One model. x_error, y_error: standard errors; 0 where there is none."""

    name: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


def front(points: Sequence[Point]) -> list[int]:
    """Return the points that no other beats: none is at least as good in both and better in one. In order of x."""

    def is_beaten(point: Point) -> bool:
        return any(
            other.x >= point.x and other.y >= point.y and (other.x > point.x or other.y > point.y) for other in points
        )

    kept = [place for place, point in enumerate(points) if not is_beaten(point)]
    return sorted(kept, key=lambda place: (points[place].x, place))


def draw(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """Draw the points with bars of one standard error, numbered, with a legend below. Follows light and dark mode."""
    x_axis, y_axis = (
        _Axis.around([(point.x, point.x_error) for point in points], LEFT, WIDTH - RIGHT),
        _Axis.around([(point.y, point.y_error) for point in points], HEIGHT - BOTTOM, TOP),
    )
    best = front(points)
    parts = [_grid(x_axis, y_axis, x_label, y_label)]
    if len(best) > 1:
        steps = " ".join(f"{x_axis.at(points[place].x):.1f},{y_axis.at(points[place].y):.1f}" for place in best)
        parts.append(f'<polyline class="front" points="{steps}"/>')
    for place, point in enumerate(points):
        parts.append(_mark(point, place + 1, x_axis, y_axis, on_front=place in best))
    for place, point in enumerate(points):
        text = f"{place + 1}  {escape(point.name)}: {x_label} {point.x:.3g}, {y_label} {point.y:.3g}"
        parts.append(f'<text x="{LEFT}" y="{HEIGHT + LINE * place}">{text}</text>')
    height = HEIGHT + LINE * len(points)
    spoken = escape(f"{title}: {y_label} against {x_label} of {len(points)} models")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{spoken}"><title>{spoken}</title><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[tuple[float, float]], start: float, end: float) -> _Axis:
        """Span all values with their errors, and a margin."""
        low = min(value - error for value, error in values)
        high = max(value + error for value, error in values)
        margin = 0.12 * (high - low) or max(0.05 * abs(high), 0.01)
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the span, four to ten of them."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [step * (first + place) for place in range(int(self.high / step - first) + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    parts = []
    for tick in x_axis.ticks():
        at = x_axis.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="soft" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.4g}</text>'
        )
    for tick in y_axis.ticks():
        at = y_axis.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - BOTTOM + 34}" text-anchor="middle">{x_label}</text>'
    )
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{y_label}</text>')
    return "".join(parts)


def _mark(point: Point, number: int, x_axis: _Axis, y_axis: _Axis, *, on_front: bool) -> str:
    x, y = x_axis.at(point.x), y_axis.at(point.y)
    left, right = x_axis.at(point.x - point.x_error), x_axis.at(point.x + point.x_error)
    low, high = y_axis.at(point.y - point.y_error), y_axis.at(point.y + point.y_error)
    return (
        f'<line class="bar" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle{" class=" + chr(34) + "on" + chr(34) if on_front else ""} cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        f'<text class="in" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{number}</text>'
    )
