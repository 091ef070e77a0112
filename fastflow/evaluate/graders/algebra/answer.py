r"""Answers as they are compared: a number with its unit, a set, a tuple, a region of the line, a relation, a word.

`read` takes the normalised text of an answer apart by its outermost structure; `equivalence` compares what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from fastflow.evaluate.graders.algebra.expression import Tree
from fastflow.evaluate.graders.algebra.units import Unit


@dataclass(frozen=True)
class Quantity:
    """A formula, and the unit behind it. text: how it was written."""

    tree: Tree
    unit: Unit | None
    text: str


@dataclass(frozen=True)
class Words:
    """Text that is compared as text; also a formula that the reader does not know (is_formula)."""

    text: str
    is_formula: bool = False


@dataclass(frozen=True)
class Digits:
    """A numeral in a base. base: 0 where none is written."""

    digits: str
    base: int


@dataclass(frozen=True)
class Ratio:
    """a : b or a : b : c, which may be a time of the day. half: "am", "pm" or nothing."""

    parts: tuple[Tree, ...]
    text: str
    half: str = ""


@dataclass(frozen=True)
class Many:
    """Several values without an order: a set, a list, the two signs of a plus-minus."""

    items: tuple[Answer, ...]


@dataclass(frozen=True)
class Listing:
    """Values in an order, with the brackets around them: a tuple, or an open or closed interval."""

    items: tuple[Answer, ...]
    opening: str
    closing: str


@dataclass(frozen=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True)
class Relation:
    """left (operator) right, where the operator is one of = < > ≤ ≥ ≠."""

    left: Tree
    operator: str
    right: Tree
    name: str = ""  # the variable or the name that stands alone on the left; empty for a formula
    value: Answer | None = None  # of an equation, what the right side says by itself


@dataclass(frozen=True)
class Region:
    """A set of real numbers. kind "interval": (low, low_closed, high, high_closed); "all"; "union", "intersection",
    "difference": of the parts; "points": the items. variable: whose values it describes, if that was written.
    """

    kind: str
    parts: tuple[Region, ...] = ()
    low: Tree = ("neg", ("infty",))
    low_closed: bool = False
    high: Tree = ("infty",)
    high_closed: bool = False
    points: tuple[Tree, ...] = ()
    variable: str = ""


Answer = Union[Quantity, Words, Digits, Ratio, Many, Listing, Matrix, Relation, Region]  # noqa: UP007 (a forward reference)
