"""Whether two answers are the same: structure by structure; numbers and formulas by their values (formulas.py).

`None` means that this reader cannot tell; `symbolic` is then asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from fastflow.evaluate.graders.algebra.answer import (
    Answer,
    Digits,
    Listing,
    Many,
    Matrix,
    Quantity,
    Ratio,
    Region,
    Relation,
    Words,
)
from fastflow.evaluate.graders.algebra.expression import Tree, Unreadable, variables
from fastflow.evaluate.graders.algebra.formulas import same_trees
from fastflow.evaluate.graders.algebra.letter_words import same_spelling
from fastflow.evaluate.graders.algebra.number_words import number_in_words, same_noun
from fastflow.evaluate.graders.algebra.regions import as_region, pieces_of, same_pieces
from fastflow.evaluate.graders.algebra.units import ANGLE, GENERIC, PERCENT, Unit, read_unit
from fastflow.evaluate.graders.algebra.value import (
    POINTS,
    TooLarge,
    Undefined,
    agree,
    evaluate,
    is_real,
    point,
    quotient,
)

_LETTERS = re.compile(r"[A-Za-z][A-Za-z_\d]*")


def same(gold: Answer, answer: Answer) -> bool | None:
    """Whether the answer is the gold answer. Not symmetric: the gold answer decides what has to be given."""
    if isinstance(gold, Relation) and gold.operator == "=" and not isinstance(answer, (Relation, Region)):
        return same(gold.value, answer) if gold.name and gold.value is not None else False
    if isinstance(answer, Relation) and answer.operator == "=" and not isinstance(gold, (Relation, Region)):
        return _value_for(gold, answer)
    if isinstance(gold, Many) or isinstance(answer, Many):
        return _same_items(gold, answer)
    if isinstance(gold, Region) or isinstance(answer, Region) or {type(gold), type(answer)} == {Listing, Relation}:
        return _same_region(gold, answer)
    if isinstance(gold, Ratio) != isinstance(answer, Ratio):
        return _ratio_and_number(gold, answer)
    if isinstance(gold, Digits) != isinstance(answer, Digits):
        return _numeral_and_number(gold, answer)
    if isinstance(gold, Matrix) != isinstance(answer, Matrix):
        return _vector_and_tuple(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _same_words(gold, answer)
    if type(gold) is not type(answer):
        return False
    return _COMPARISONS[type(gold)](gold, answer)


def _same_quantities(gold: Quantity, answer: Quantity) -> bool | None:
    if _count_different_things(gold, answer):
        return False
    left, right = _letter_unit(answer.unit, gold), _letter_unit(gold.unit, answer)
    wanted = gold.tree[1] if left is not None and gold.unit is None else gold.tree
    tree = _with_constant_of(wanted, answer.tree)
    if right is not None and answer.unit is None:
        tree = answer.tree[1]
    if left is None or right is None or not (left.is_known and right.is_known):
        if left is not None and right is not None and left.is_known != right.is_known:
            vague = right if left.is_known else left
            if not GENERIC.match(vague.word):
                return False
        equal = same_trees(wanted, tree)
        known = left if left is not None and left.is_known else right if right is not None and right.is_known else None
        if known is None or known.dimension not in (PERCENT, ANGLE):
            return equal
        return _bare_and_scaled(gold, tree, left, right, equal)
    if left.dimension != right.dimension:
        if {left.dimension, right.dimension} == {ANGLE, (("radian", 1),)}:
            return same_trees(_in_radians(wanted, left), _in_radians(tree, right))
        return False
    return same_trees(_scaled(wanted, left), _scaled(tree, right))


def _count_different_things(gold: Quantity, answer: Quantity) -> bool:
    """ "two apples" and "two oranges": both in words, which are compared as words."""
    units = [part.unit for part in (gold, answer) if number_in_words(part.text)]
    words = [unit.word for unit in units if unit is not None and not unit.is_known]
    return len(words) == 2 and not same_noun(*words)


def _bare_and_scaled(
    gold: Quantity, tree: Tree, left: Unit | None, right: Unit | None, equal: bool | None
) -> bool | None:
    """A bare number beside percent or degrees: the same number, a share in place of percent, or an angle in radians."""
    gold_scaled = left is not None and left.is_known
    dimension = left.dimension if gold_scaled and left is not None else right.dimension if right is not None else ()
    scaled, bare = (gold.tree, tree) if gold_scaled else (tree, gold.tree)
    if dimension == ANGLE:
        if "pi" in str(bare):
            return same_trees(("degrees", scaled), bare)
        return equal
    share = same_trees(("/", scaled, ("num", Fraction(100))), bare)
    return True if share or (equal and _is_over_one(scaled)) else share


def _with_constant_of(gold: Tree, answer: Tree) -> Tree:
    """The answer with the gold answer's letter for a constant of integration, or for the whole number in "+ kπ"."""
    old, new = variables(answer) - variables(gold), variables(gold) - variables(answer)
    if len(old) != 1 or len(new) != 1:
        return answer
    pair = old | new
    summand = all(tree[0] == "+" and tree[2][0] == "var" and tree[2][1] in pair for tree in (gold, answer))
    periodic = pair <= {"k", "l", "m", "n"} and all(tree[0] == "+" and ("pi",) in tree[2] for tree in (gold, answer))
    if not periodic and not (summand and pair <= {"C", "c", "K", "k", "C_1"}):
        return answer
    return _renamed(answer, old.pop(), new.pop())


def _renamed(tree: Tree, old: str, new: str) -> Tree:
    if tree[0] == "var":
        return ("var", new if tree[1] == old else tree[1])
    return tuple(_renamed(part, old, new) if isinstance(part, tuple) else part for part in tree)


def _is_over_one(tree: Tree) -> bool:
    try:
        return bool(abs(evaluate(tree, point(0))) >= 1)
    except (TooLarge, Undefined, Unreadable):
        return False


def _in_radians(tree: Tree, unit: Unit) -> Tree:
    return ("degrees", tree) if unit.dimension == ANGLE else tree


def _scaled(tree: Tree, unit: Unit) -> Tree:
    return tree if unit.factor == 1 else ("*", ("num", unit.factor), tree)


def _letter_unit(beside: Unit | None, quantity: Quantity) -> Unit | None:
    """The unit of a quantity, which may be written as a letter: "5 m" beside an answer in metres."""
    if quantity.unit is None and beside is not None and quantity.tree[0] == "*" and quantity.tree[2][0] == "var":
        unit = read_unit(quantity.tree[2][1])
        return unit if unit.is_known else None
    return quantity.unit


def _value_for(gold: Answer, answer: Relation) -> bool | None:
    """An equation where a value is asked for: what stands behind the name."""
    assert answer.value is not None
    if answer.name:
        return same(gold, answer.value)
    several = len(variables(answer.left)) > 1 and not variables(answer.right)
    if several and answer.right != ("num", Fraction(0)):  # "m + n = 5"
        return same(gold, answer.value)
    if not variables(answer.left) and not variables(answer.right):  # "2 + 3 = 5"
        return bool(same_trees(answer.left, answer.right)) and same(gold, answer.value)
    return False


def _same_items(gold: Answer, answer: Answer) -> bool | None:
    """Sets: each value of one has its like in the other."""
    left = gold.items if isinstance(gold, Many) else (gold,)
    right = answer.items if isinstance(answer, Many) else (answer,)
    if isinstance(gold, Region) or isinstance(answer, Region):
        return _same_region(gold, answer)
    if isinstance(gold, Listing) and len(right) == len(gold.items) and _are_named(right):
        ordered = sorted((item for item in right if isinstance(item, Relation)), key=lambda item: item.name)
        return all(bool(same(*pair)) for pair in zip(gold.items, ordered, strict=True))
    if _are_named(left) and not _are_named(right):
        bare = answer.items if isinstance(answer, (Many, Listing)) else ()
        ordered = sorted((item for item in left if isinstance(item, Relation)), key=lambda item: item.name)
        if len(bare) == len(ordered) > 1 and not any(isinstance(item, Relation) for item in bare):
            return all(bool(same(*pair)) for pair in zip(ordered, bare, strict=True))
    if len(right) == 2 and isinstance(answer, Many) and isinstance(gold, Quantity):
        return _equal_signs(gold, answer)
    unknown = False
    for one, others, flipped in ((left, right, False), (right, left, True)):
        for item in one:
            outcomes = [same(other, item) if flipped else same(item, other) for other in others]
            if True in outcomes:
                continue
            if None not in outcomes:
                return False
            unknown = True
    return None if unknown else True


def _are_named(items: tuple[Answer, ...]) -> bool:
    names = [item.name for item in items if isinstance(item, Relation)]
    return len(names) == len(items) == len(set(names)) and all(names)


def _equal_signs(gold: Quantity, answer: Many) -> bool | None:
    outcomes = [same(gold, item) for item in answer.items]
    return None if None in outcomes else all(outcomes)


def _same_region(gold: Answer, answer: Answer) -> bool | None:
    left, right = as_region(gold), as_region(answer)
    if left is None or right is None:
        return False if not isinstance(answer, Relation) and not isinstance(gold, Relation) else None
    if left.variable and right.variable and left.variable != right.variable:
        return _is_mirrored(left, right)
    try:
        return all(same_pieces(pieces_of(left, at), pieces_of(right, at)) for at in map(point, range(2)))
    except (Undefined, TooLarge, Unreadable):
        return None


def _is_mirrored(left: Region, right: Region) -> bool:
    """a > b and b < a, each read as a half-line of its own variable."""
    if {left.kind, right.kind} != {"interval"}:
        return False
    lower, upper = (left, right) if left.high == ("infty",) else (right, left)
    ends = (lower.low, upper.high) == (("var", upper.variable), ("var", lower.variable))
    open_ended = (lower.high, upper.low) == (("infty",), ("neg", ("infty",)))
    return ends and open_ended and lower.low_closed == upper.high_closed


def _same_relations(gold: Relation, answer: Relation) -> bool | None:
    """Equations and inequalities: one is a constant multiple of the other."""
    flip = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
    if gold.operator == "=" and answer.operator == "=" and gold.value is not None and answer.value is not None:
        if gold.name and gold.name == answer.name:
            return same(gold.value, answer.value)
        if _is_function(gold.name) and _is_function(answer.name):
            return same(gold.value, answer.value)
    if (gold.operator in "=≠") != (answer.operator in "=≠"):
        return False
    ratios = []
    for index in range(POINTS):
        try:
            at = point(index)
            left = evaluate(("-", gold.left, gold.right), at)
            right = evaluate(("-", answer.left, answer.right), at)
        except (Undefined, TooLarge, Unreadable):
            return None
        if left == 0 or right == 0:
            return None
        ratios.append(quotient(left, right))
    if not all(agree(ratio, ratios[0]) for ratio in ratios[1:]) or not is_real(ratios[0]):
        return False
    expected = gold.operator if ratios[0].real > 0 else flip.get(gold.operator, gold.operator)
    return expected == answer.operator


def _is_function(name: str) -> bool:
    """y, or f(x): names for the same thing where a function is asked for."""
    return name == "y" or bool(re.fullmatch(r"[a-zA-Z]\([a-z]\)", name))


def _same_listings(gold: Listing, answer: Listing) -> bool | None:
    if (gold.opening, gold.closing) != (answer.opening, answer.closing):
        return False if _is_empty(gold) else _same_region(gold, answer)
    return _same_entries(gold.items, answer.items)


def _is_empty(listing: Listing) -> bool:
    """Whether it would hold nothing as an interval: then it was not meant as one."""
    region = as_region(listing)
    try:
        return region is not None and not pieces_of(region, point(0))
    except (Undefined, TooLarge, Unreadable):
        return False


def _same_matrices(gold: Matrix, answer: Matrix) -> bool | None:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    entries = [tuple(entry for row in matrix.rows for entry in row) for matrix in (gold, answer)]
    return _same_entries(*entries)


def _vector_and_tuple(gold: Answer, answer: Answer) -> bool | None:
    """A column of numbers is a tuple."""
    vector, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    if not isinstance(vector, Matrix) or not isinstance(other, Listing):
        return False
    if all(isinstance(item, Listing) for item in other.items):  # a list of rows
        rows = Matrix(tuple(item.items for item in other.items if isinstance(item, Listing)))
        return _same_matrices(vector, rows)
    if any(len(row) != 1 for row in vector.rows) and len(vector.rows) != 1:
        return False
    items = tuple(entry for row in vector.rows for entry in row)
    return _same_entries(items, other.items)


def _same_entries(left: tuple[Answer, ...], right: tuple[Answer, ...]) -> bool | None:
    if len(left) != len(right):
        return False
    outcomes = [same(*pair) for pair in zip(left, right, strict=True)]
    return False if False in outcomes else None if None in outcomes else True


def _same_numerals(gold: Digits, answer: Digits) -> bool:
    return gold == answer


def _numeral_and_number(gold: Answer, answer: Answer) -> bool | None:
    """A numeral whose base was left out has to show the same digits; base ten is a number like any other."""
    numeral, other = (gold, answer) if isinstance(gold, Digits) else (answer, gold)
    if not isinstance(numeral, Digits) or not isinstance(other, (Quantity, Words)):
        return False
    if numeral.base != 10 and not isinstance(gold, Digits):
        return False
    return (other.text.replace(" ", "").upper().lstrip("0") or "0") == numeral.digits


def _same_ratios(gold: Ratio, answer: Ratio) -> bool | None:
    if len(gold.parts) != len(answer.parts):
        return False
    times = [_minutes(ratio) for ratio in (gold, answer)]
    if times[0] is not None and times[1] is not None:
        halves = bool(gold.half) and bool(answer.half)
        return times[0] % 1440 == times[1] % 1440 if halves or not (gold.half or answer.half) else (
            (times[0] - times[1]) % 720 == 0)  # fmt: skip
    if gold.half or answer.half:
        return False
    pairs = zip(gold.parts[1:], answer.parts[1:], strict=True)
    outcomes = [same_trees(("*", gold.parts[0], right), ("*", answer.parts[0], left)) for left, right in pairs]
    return False if False in outcomes else None if None in outcomes else True


def _minutes(ratio: Ratio) -> int | None:
    """Minutes since midnight, of what is written as a time of the day."""
    found = re.fullmatch(r"(\d{1,2}):([0-5]\d)", ratio.text)
    if not found or int(found.group(1)) > 24:
        return None
    hours = int(found.group(1))
    if ratio.half:
        hours = hours % 12 + (12 if ratio.half == "pm" else 0)
    return hours * 60 + int(found.group(2))


def _ratio_and_number(gold: Answer, answer: Answer) -> bool | None:
    """a : b is the fraction a / b, unless it is written like a time."""
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    if not isinstance(ratio, Ratio) or not isinstance(other, Quantity) or len(ratio.parts) != 2 or ratio.half:
        return False
    if _minutes(ratio) is not None and not isinstance(gold, Quantity):
        return False
    return same_trees(("/", *ratio.parts), other.tree)


def _same_words(gold: Answer, answer: Answer) -> bool | None:
    if isinstance(gold, Words) and isinstance(answer, Words) and not (gold.is_formula and answer.is_formula):
        return same_spelling(gold.text, answer.text)
    formulas = [not isinstance(part, Words) or part.is_formula for part in (gold, answer)]
    if not all(formulas):
        return _same_letters(gold, answer)
    texts = [
        re.sub(r"(?<!\d)\s|\s(?!\d)", "", part.text) for part in (gold, answer) if isinstance(part, (Words, Quantity))
    ]
    return True if len(texts) == 2 and texts[0] == texts[1] else None


def _same_letters(gold: Answer, answer: Answer) -> bool:
    """A word beside a formula of letters: each in its place, since they are no factors."""
    words, formula = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    if not isinstance(words, Words) or not isinstance(formula, Quantity) or formula.unit is not None:
        return False
    spelled = re.sub(r"[\s{}]", "", formula.text)
    return bool(_LETTERS.fullmatch(spelled)) and same_spelling(words.text, spelled)


_COMPARISONS: dict[type, Callable[..., bool | None]] = {
    Quantity: _same_quantities,
    Relation: _same_relations,
    Listing: _same_listings,
    Matrix: _same_matrices,
    Digits: _same_numerals,
    Ratio: _same_ratios,
}
