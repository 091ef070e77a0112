"""A plot as a picture of its own, which Markdown can show: with title and legend, in light and in dark mode."""

from __future__ import annotations

from html import escape

from fastflow.drawing.plot import Plot
from fastflow.visible import visible

WIDTH, HEIGHT = 640, 340  # of the curves; the title stands above them, the legend below
LEFT, LINE = 24, 20  # pixels to the left edge, and between lines of text
_STYLE = (
    "svg{--ink:#1c2126;--muted:#626b75;--grid:#d3d8dd;--blue:#2b6cb8;--orange:#b3561c;--green:#2d7a50;--purple:#7b5ab5;"
    "background:#fff}@media (prefers-color-scheme: dark){svg{--ink:#dfe4e9;--muted:#98a2ac;--grid:#3b434b;"
    "--blue:#74aee8;--orange:#e99a66;--green:#74c398;--purple:#b59ae6;background:#14171a}}"
    "text{font-family:system-ui,sans-serif;fill:var(--muted)}.own{font-size:13px;fill:var(--ink)}"
)


def standalone(plot: Plot) -> str:
    """Return the plot as SVG."""
    curves = plot.svg.replace("<svg ", f'<svg y="{2 * LINE}" width="{WIDTH}" height="{HEIGHT}" ', 1)
    heading = f"{plot.title}, {plot.unit}" if plot.unit else plot.title
    parts = [_text(LEFT, LINE + 4, heading), curves]
    below = HEIGHT + 3 * LINE
    for place, (label, colour, _, value) in enumerate(plot.legend):
        at = below + LINE * place
        parts.append(f'<circle cx="{LEFT + 4}" cy="{at - 4}" r="5" style="fill:var(--{colour})"/>')
        parts.append(_text(LEFT + 18, at, f"{place + 1}  {label}: {value}"))
    height, spoken = below + LINE * len(plot.legend), escape(visible(plot.description))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{spoken}"><title>{spoken}</title><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _text(x: int, y: int, text: str) -> str:
    return f'<text class="own" x="{x}" y="{y}">{escape(visible(text))}</text>'
