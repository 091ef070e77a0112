"""Small figures as inline SVG, whose colours and text follow the page, in light and in dark mode.

matplotlib draws with stand-in colours (`COLOURS`). Each becomes a CSS variable of the page afterwards.
"""

from __future__ import annotations

import io
import re
from typing import Any

from fastflow.drawing.numbers import number
from fastflow.models.pulse import PULSE

LEAST_SPAN = 1e-3  # share of the values' size that an axis shows at least: rounding noise must not fill it
COLOURS = {  # CSS variable -> colour for matplotlib; all differ, and matplotlib itself uses none of them
    "blue": "#010211",
    "orange": "#010212",
    "green": "#010213",
    "purple": "#010214",
    "muted": "#010215",
    "grid": "#010216",
}


def make_axes(*, counts: bool = True) -> tuple[Any, Any]:
    """Make a figure and its axes. counts: whether x counts something, such as steps; its ticks are whole then."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with rc_context({"font.size": 9.5, "axes.linewidth": 0.8, "lines.linewidth": 1.7, "lines.solid_capstyle": "round"}):
        figure = Figure(figsize=(4.4, 2.3))
        axes = figure.add_axes((0.115, 0.185, 0.865, 0.765))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["grid"])
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, pad=5, colors=COLOURS["muted"])
        axes.xaxis.label.set_color(COLOURS["muted"])
        axes.xaxis.labelpad = 1
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=counts, min_n_ticks=1 if counts else 3))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for axis in (axes.yaxis,) if counts else (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, digits=5)))
    return figure, axes


def set_scale(axes: Any, drawn: list[float], *, from_zero: bool, may_be_log: bool) -> None:
    """Scale by logarithm where values span over a decade and a half; start at zero where zero has a meaning."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(drawn), max(drawn)
    least_span = LEAST_SPAN * max(abs(low), abs(high))
    if may_be_log and low > 0 and high / low > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, digits=5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif from_zero:
        axes.set_ylim(0, None if high > 0 else 1)
    elif 0 < high - low < least_span:
        axes.set_ylim((low + high) / 2 - least_span, (low + high) / 2 + least_span)


def to_svg(figure: Any, prefix: str) -> str:
    """Turn the figure into inline SVG: CSS variables for colours, the page's font, ids that start with `prefix`.

    Templates take the result for markup: of the prefix only letters, digits, _ and - remain.
    """
    from matplotlib import rc_context

    prefix = re.sub(r"[^\w-]+", "-", prefix, flags=re.ASCII)
    PULSE.work()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}), io.StringIO() as buffer:
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL
    )  # it would style the whole page
    svg = re.sub(r"<svg[^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"|font-family: [^;\"]*; |xlink:(?=href)", "", svg)
    svg = re.sub(r"(id=\"|url\(#|href=\"#)", rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"(?<= )(d|x|y)=\"[^\"]*\"", lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", svg)
