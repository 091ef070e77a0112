"""The runs of a sweep: every combination of the values of its axes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastflow.errors import FastflowError

SEED = "run.seed"
MOST_RUNS = 1000
LONGEST_NAME = 120  # characters of a run's directory
VARIANT = "variant"


@dataclass(frozen=True)
class Point:
    """One value of an axis. settings: what it sets, by dotted name. options: the same as words of a command line."""

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid. name: the setting that its points change, otherwise `variant`."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. group: what it changes besides the seed, in words; runs of a group are averaged.

    name: of its directory. settings, options: as in Point.
    """

    name: str
    group: str
    settings: Mapping[str, Any]
    options: tuple[str, ...]


def expand(axes: Sequence[Axis]) -> list[Cell]:
    """Return one cell for each combination, all groups of the first seed first.

    Raises FastflowError for an axis without values, a value or an axis that is given twice, and too many runs.
    """
    _check(axes)
    ordered = sorted(axes, key=lambda axis: axis.name != SEED)
    words = _short_names(axes)
    cells: list[Cell] = []
    taken: set[str] = set()
    for points in itertools.product(*(axis.points for axis in ordered)):
        chosen = dict(zip((axis.name for axis in ordered), points, strict=True))
        chosen = {axis.name: chosen[axis.name] for axis in axes}  # in the order in which they were asked for
        settings = {name: value for point in chosen.values() for name, value in point.settings.items()}
        options = tuple(option for point in chosen.values() for option in point.options)
        named = {name: point.label for name, point in chosen.items() if name != SEED}
        group = ", ".join(f"{words[name]} {label}".removeprefix(f"{VARIANT} ") for name, label in named.items())
        name = _directory_name([(words[name], point.label) for name, point in chosen.items()], taken)
        cells.append(Cell(name, group or "all runs", settings, options))
        taken.add(name.casefold())
    return cells


def label_of(value: Any) -> str:
    """Write a value as a person would."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.12g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _check(axes: Sequence[Axis]) -> None:
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise FastflowError(f"the grid names {axis.name} twice; give all of its values in one place")
        if not axis.points:
            raise FastflowError(f"the grid gives {axis.name} no values; give at least one")
        (label, times), *_ = Counter(point.label for point in axis.points).most_common(1)
        if times > 1:
            raise FastflowError(f"the grid gives {axis.name} the value {label} twice; leave one out")
    _check_apart(axes)
    count = math.prod(len(axis.points) for axis in axes)
    if count > MOST_RUNS:
        raise FastflowError(f"the grid has {count} runs, but may have at most {MOST_RUNS}; leave values out")


def _check_apart(axes: Sequence[Axis]) -> None:
    """Refuse a setting that both a variant and the grid give: the run would take one of the values in silence."""
    for first, second in itertools.permutations(axes, 2):
        for point in first.points:
            if second.name in point.settings:
                raise FastflowError(
                    f"the {first.name} {point.label} sets {second.name}, and the grid gives it too; leave one of them "
                    "out"
                )


def _short_names(axes: Sequence[Axis]) -> dict[str, str]:
    """Name each setting by its last word, or in full where two end alike."""
    last = [axis.name.split(".")[-1] for axis in axes]
    return {axis.name: word if last.count(word) == 1 else axis.name for axis, word in zip(axes, last, strict=True)}


def _directory_name(parts: Sequence[tuple[str, str]], taken: set[str]) -> str:
    """Write the values so that a shell needs no quotes. A digest keeps apart what would then be equal."""
    full = "_".join(label if word == VARIANT else f"{word}-{label}" for word, label in parts) or "run"
    name = re.sub(r"[^\w.+\-]+", "-", full, flags=re.ASCII).strip("+-.") or "run"
    if len(name) > LONGEST_NAME or name.casefold() in taken:
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 9]}-{digest}"
    return name
