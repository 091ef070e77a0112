"""What a drawn plot consists of, and how the lines of several models, groups or metrics are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SERIES_COLOURS = ("blue", "orange", "green", "purple")
_COLOURS = (*SERIES_COLOURS, "muted")
_DASHES: tuple[tuple[str, Any], ...] = (("line", "-"), ("dashed", (0, (5, 2))), ("dotted", (0, (1.2, 1.6))))


Legend = tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class Plot:
    """What a page shows. legend: (label, colour, kind, last value). description: text for screen readers."""

    title: str
    unit: str
    svg: str
    legend: Legend
    description: str


@dataclass(frozen=True)
class Style:
    """How a group is drawn everywhere on a page. kind: of its key in a legend."""

    colour: str
    kind: str
    dashes: Any


def solid(index: int) -> Style:
    """The style of a model's line among those of an evaluation: colours alone, which repeat after four."""
    return Style(SERIES_COLOURS[index % len(SERIES_COLOURS)], "line", "-")


def styles(groups: Sequence[str]) -> dict[str, Style]:
    """Give each group a colour and a line style; after fifteen they repeat."""
    chosen = {}
    for index, group in enumerate(groups):
        kind, dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        chosen[group] = Style(_COLOURS[index % len(_COLOURS)], kind, dashes)
    return chosen
