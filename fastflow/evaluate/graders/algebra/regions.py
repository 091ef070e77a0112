"""Sets of real numbers: intervals, inequalities, unions, all but some points; compared by their ends, with values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import mpmath

from fastflow.evaluate.graders.algebra.answer import Answer, Listing, Many, Quantity, Region, Relation
from fastflow.evaluate.graders.algebra.expression import Tree, Unreadable, parse, variables
from fastflow.evaluate.graders.algebra.splitting import is_wrapped, split_outside
from fastflow.evaluate.graders.algebra.value import Number, TooLarge, Undefined, agree, evaluate, is_real

Piece = tuple[Number, bool, Number, bool]  # low, low_closed, high, high_closed

ALL = Region("all")
_FUNCTION = re.compile(r"[A-Za-z]\s*\(\s*[a-z]\s*\)")
_SIGNED_REALS = {
    "^+": "x > 0",
    "^-": "x < 0",
    "_>0": "x > 0",
    "_<0": "x < 0",
    "_\\ge0": "x \\ge 0",
    "_\\le0": "x \\le 0",
}
_SIGNS = {"positive": "x > 0", "negative": "x < 0", "non-negative": "x \\ge 0", "nonnegative": "x \\ge 0"}
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_OPERATORS = ("\\le ", "\\ge ", "\\ne ", "<", ">")
_FLIPPED = {"\\le ": "\\ge ", "\\ge ": "\\le ", "<": ">", ">": "<", "\\ne ": "\\ne "}
_OPEN = "<>≤≥"
_TURNED = str.maketrans("<>≤≥", "><≥≤")
_REALS = re.compile(
    r"\\R|«\s*(?:all )?(?:the )?(?:reals?|real numbers?|real values?)(?: of)?\s*»\s*[a-z]?|\\R\b.*«.*»", re.I
)
_EXCEPT = re.compile(
    r"^(.*?)(?:\\setminus|(?<=\\R)\s*-\s*(?=⦃)|«\s*(?:except|but not|other than|excluding)\s*»"
    r"|«([^»]*?)\s*except\s*»)(.*)$"
)


def read_region(text: str) -> Region | None:
    """What the text says of a line of numbers; None where it says nothing of the kind."""
    try:
        return _read(text)
    except Unreadable:
        return None


def _read(text: str) -> Region | None:
    if _REALS.fullmatch(text):
        return ALL
    if half := _half_of_reals(text):
        return _read(half)
    if found := _EXCEPT.match(text):
        outer = found.group(1).strip() or f"«{found.group(2)}»"
        whole = _interval(outer) or _read(outer)
        rest = found.group(3).strip()
        return None if whole is None else Region("difference", (whole, _interval(rest) or _points(rest)))
    if "\\cup" in text or "\\cap" in text:
        for mark, kind in (("\\cup", "union"), ("\\cap", "intersection")):
            pieces = split_outside(text, mark)
            if len(pieces) > 1:
                parts = [_interval(piece) or _read(piece) or _points(piece) for _, piece in pieces]
                return Region(kind, tuple(parts))
        return None
    if is_wrapped(text, "⦃", "⦄"):
        return _built(text[1:-1])
    if member := re.match(rf"^({_VARIABLE.pattern})\s*\\in\b\s*(.+)$", text):
        inner = member.group(2)
        region = _interval(inner) or _read(inner)
        return region and _named(region, member.group(1))
    if outside := re.match(rf"^({_VARIABLE.pattern})\s*\\notin\b\s*(.+)$", text):
        inner = outside.group(2)
        rest = _interval(inner) or _read(inner) or _points(inner)
        return Region("difference", (ALL, rest), variable=outside.group(1))
    return _inequality(text)


def _half_of_reals(text: str) -> str | None:
    """The positive numbers and such, as an inequality in x without its name."""
    if found := re.fullmatch(r"\\R\s*([\^_].*)", text):
        return _SIGNED_REALS.get(re.sub(r"[\s{}]", "", found.group(1)))
    words = re.fullmatch(r"«\s*(?:all )?(?:the )?([a-z-]+) (?:reals|real numbers?|numbers)\s*»", text, re.IGNORECASE)
    return _SIGNS.get(words.group(1).lower()) if words else None


def _built(text: str) -> Region | None:
    """x | condition: a set by what its members fulfil."""
    pieces = split_outside(text, "|", ":")
    if len(pieces) != 2 or not re.fullmatch(rf"{_VARIABLE.pattern}(?:\s*\\in\s*\\R\s*)?", pieces[0][1]):
        return None
    conditions = split_outside(pieces[1][1], "«and»", "«or»", ",")
    regions = [_read(piece) for _, piece in conditions]
    if any(region is None for region in regions):
        return None
    kept = tuple(region for region in regions if region is not None)
    if len(kept) == 1:
        return kept[0]
    return Region("union" if any(mark == "«or»" for mark, _ in conditions) else "intersection", kept)


def _interval(text: str) -> Region | None:
    """[a, b), ]a, b[ and so on."""
    text = text.strip()
    if len(text) < 5 or text[0] not in "([]" or text[-1] not in ")][":
        return None
    ends = split_outside(text[1:-1], ",", ";")
    if len(ends) != 2:
        return None
    low, high = (parse(piece) for _, piece in ends)
    return Region("interval", low=low, low_closed=text[0] == "[", high=high, high_closed=text[-1] == "]")


def _points(text: str) -> Region:
    inner = text[1:-1] if is_wrapped(text, "⦃", "⦄") else text
    inner = re.sub(rf"^{_VARIABLE.pattern}\s*=\s*", "", inner)
    return Region("points", points=tuple(parse(piece) for _, piece in split_outside(inner, ",", "«and»", "«or»")))


def _inequality(text: str) -> Region | None:
    """An inequality that is solved for one variable, or two of them around it."""
    pieces = [(mark, "y" if _FUNCTION.fullmatch(piece) else piece) for mark, piece in split_outside(text, *_OPERATORS)]
    if len(pieces) == 2:
        (_, left), (mark, right) = pieces
        if not _VARIABLE.fullmatch(left):
            left, right, mark = right, left, _FLIPPED[mark]
        return _half_line(left, mark, right) if _VARIABLE.fullmatch(left) else None
    if len(pieces) == 3 and _VARIABLE.fullmatch(pieces[1][1]):
        (_, low), (first, name), (second, high) = pieces
        parts = (_half_line(name, _FLIPPED[first], low), _half_line(name, second, high))
        if parts[0] and parts[1]:
            return Region("intersection", (parts[0], parts[1]), variable=name)
    return None


def _half_line(name: str, mark: str, end: str) -> Region | None:
    bound, variable = parse(end), parse(name)
    if variable[0] != "var" or variable[1] in variables(bound):
        return None
    name = variable[1]
    if mark == "\\ne ":
        return Region("difference", (ALL, Region("points", points=(bound,))), variable=name)
    closed = mark in ("\\le ", "\\ge ")
    if mark in ("<", "\\le "):
        return Region("interval", high=bound, high_closed=closed, variable=name)
    return Region("interval", low=bound, low_closed=closed, variable=name)


def region_of(items: Sequence[Answer], marks: Sequence[str]) -> Region | None:
    """Several regions as one: "or" joins them; "and" or a comma intersects them, unless nothing would be left."""
    regions = [as_region(item) for item in items]
    if len(regions) < 2 or not any(isinstance(item, Region) for item in items):
        return None
    kept = tuple(region for region in regions if region is not None)
    names = {region.variable for region in kept if region.variable}
    if len(kept) < len(regions) or len(names) > 1:
        return None
    name = next(iter(names), "")
    joined = Region("union", kept, variable=name)
    if "«or»" in marks:
        return joined
    both = Region("intersection", kept, variable=name)
    try:
        return both if "«and»" in marks or pieces_of(both, {}) else joined
    except (Undefined, Unreadable, KeyError):
        return both


def as_region(item: Answer) -> Region | None:
    """An answer that can be understood as a region: a bracket of two ends, the points of a set, x = a."""
    if isinstance(item, Region):
        return item
    if isinstance(item, Listing) and len(item.items) == 2:
        low, high = item.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            return Region("interval", low=low.tree, low_closed=item.opening == "[", high=high.tree,
                          high_closed=item.closing == "]")  # fmt: skip
    if isinstance(item, Many) and all(isinstance(part, Quantity) for part in item.items):
        return Region("points", points=tuple(part.tree for part in item.items if isinstance(part, Quantity)))
    if isinstance(item, Many) and all(isinstance(part, Listing) for part in item.items):
        parts = [as_region(part) for part in item.items]
        return None if None in parts else Region("union", tuple(part for part in parts if part is not None))
    if isinstance(item, Relation) and item.operator in _OPEN:
        return _solved(item)
    if isinstance(item, Relation) and item.name and isinstance(item.value, Quantity):
        return Region("points", points=(item.value.tree,), variable=item.name)
    return None


def _solved(item: Relation) -> Region | None:
    """A linear inequality in one variable, solved for it; None for any other."""
    names = variables(item.left) | variables(item.right)
    if len(names) != 1:
        return None
    (name,) = names
    if item.left[0] == "abs" and not variables(item.right):
        return _within(item, name)
    difference = ("-", item.left, item.right)
    try:
        at_0, at_1, at_2 = (evaluate(difference, {name: Fraction(number)}) for number in range(3))
    except (Undefined, TooLarge, Unreadable):
        return None
    if not all(isinstance(value, Fraction) for value in (at_0, at_1, at_2)) or at_2 - 2 * at_1 + at_0 or at_1 == at_0:
        return None
    end, closed = ("num", at_0 / (at_0 - at_1)), item.operator in "≤≥"
    if (item.operator in "<≤") == (at_1 > at_0):
        return Region("interval", high=end, high_closed=closed, variable=name)
    return Region("interval", low=end, low_closed=closed, variable=name)


def _within(item: Relation, name: str) -> Region | None:
    """|x| < a and |x| > a, as what they say of x."""
    mirror = Relation(item.left[1], item.operator.translate(_TURNED), ("neg", item.right))
    sides = [_solved(side) for side in (Relation(item.left[1], item.operator, item.right), mirror)]
    kept = tuple(side for side in sides if side is not None)
    if len(kept) < 2:
        return None
    return Region("intersection" if item.operator in "<≤" else "union", kept, variable=name)


def pieces_of(region: Region, at: Mapping[str, Number]) -> list[Piece]:
    """The region at a point, as sorted intervals that do not touch. Raises Undefined."""
    if region.kind == "all":
        return [(-mpmath.inf, False, mpmath.inf, False)]
    if region.kind == "interval":
        low, high = _end(region.low, at), _end(region.high, at)
        finite_low, finite_high = not mpmath.isinf(_float(low)), not mpmath.isinf(_float(high))
        return _tidy([(low, region.low_closed and finite_low, high, region.high_closed and finite_high)])
    if region.kind == "points":
        return _tidy([(end, True, end, True) for end in (_end(point, at) for point in region.points)])
    parts = [pieces_of(part, at) for part in region.parts]
    if region.kind == "union":
        return _tidy([piece for part in parts for piece in part])
    result = parts[0]
    for part in parts[1:]:
        result = _intersect(result, _complement(part) if region.kind == "difference" else part)
    return result


def same_pieces(left: list[Piece], right: list[Piece]) -> bool:
    """Whether two lists of intervals are equal."""
    return len(left) == len(right) and all(
        a[1] == b[1] and a[3] == b[3] and agree(a[0], b[0]) and agree(a[2], b[2])
        for a, b in zip(left, right, strict=True)
    )


def _end(tree: Tree, at: Mapping[str, Number]) -> Number:
    value = evaluate(tree, at)
    if not is_real(value):
        raise Undefined("an end that is not real")
    return value.real if isinstance(value, mpmath.mpc) else value


def _float(number: Number) -> Number:
    return mpmath.mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else number


def _less(left: Number, right: Number) -> bool:
    return not agree(left, right) and bool(_float(left) < _float(right))


def _is_empty(piece: Piece) -> bool:
    low, low_closed, high, high_closed = piece
    return _less(high, low) or (agree(low, high) and not (low_closed and high_closed))


def _tidy(pieces: list[Piece]) -> list[Piece]:
    kept = sorted(
        (piece for piece in pieces if not _is_empty(piece)), key=lambda piece: (_float(piece[0]), not piece[1])
    )
    merged: list[Piece] = []
    for piece in kept:
        if merged:
            low, low_closed, high, high_closed = merged[-1]
            touches = _less(piece[0], high) or (agree(piece[0], high) and (piece[1] or high_closed))
            if touches:
                if agree(piece[2], high):
                    merged[-1] = (low, low_closed, high, high_closed or piece[3])
                elif _less(high, piece[2]):
                    merged[-1] = (low, low_closed, piece[2], piece[3])
                continue
        merged.append(piece)
    return merged


def _intersect(left: list[Piece], right: list[Piece]) -> list[Piece]:
    result = []
    for a in left:
        for b in right:
            low, low_closed = (a[0], a[1]) if _less(b[0], a[0]) else (b[0], b[1])
            if agree(a[0], b[0]):
                low_closed = a[1] and b[1]
            high, high_closed = (a[2], a[3]) if _less(a[2], b[2]) else (b[2], b[3])
            if agree(a[2], b[2]):
                high_closed = a[3] and b[3]
            result.append((low, low_closed, high, high_closed))
    return _tidy(result)


def _complement(pieces: list[Piece]) -> list[Piece]:
    result: list[Piece] = []
    low, low_closed = -mpmath.inf, False
    for piece in pieces:
        result.append((low, low_closed, piece[0], not piece[1]))
        low, low_closed = piece[2], not piece[3]
    result.append((low, low_closed, mpmath.inf, False))
    return _tidy(result)


def _named(region: Region, name: str) -> Region:
    return replace(region, variable=name)
