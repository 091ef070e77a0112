"""Whether two formulas are the same: by their values, exact or at several points."""

from __future__ import annotations

from fastflow.evaluate.graders.algebra.expression import Tree, Unreadable, variables
from fastflow.evaluate.graders.algebra.value import (
    DIGITS,
    POINTS,
    Number,
    TooLarge,
    Undefined,
    agree,
    digits_for,
    evaluate,
    is_real,
    point,
)

MOST_DIGITS = 3000  # carried for the sake of a small term beside a large one


def same_trees(gold: Tree, answer: Tree) -> bool | None:
    """Whether two formulas agree wherever they have values."""
    names = variables(gold) | variables(answer)
    outcomes: dict[bool, list[bool]] = {True: [], False: []}  # at points where both are real, and elsewhere
    for index in range(POINTS if names else 1):
        try:
            left, right = _pair(gold, answer, index)
        except Undefined:
            continue
        except Unreadable:
            return None
        except TooLarge:
            return _beyond(gold, answer)
        both_real = is_real(left[0]) and is_real(right[0])
        outcomes[both_real].append(agree(left[0], right[0], left[1]))
    decisive = outcomes[True] or outcomes[False]  # roots and logarithms of negative numbers have several conventions
    return all(decisive) if decisive else None


def _pair(gold: Tree, answer: Tree, index: int) -> tuple[tuple[Number, int], tuple[Number, int]]:
    at = point(index)
    left, right = evaluate(gold, at), evaluate(answer, at)
    digits = max(digits_for(left), digits_for(right))
    if digits > MOST_DIGITS:
        raise TooLarge("a number of thousands of digits")
    if digits > DIGITS:
        left, right = evaluate(gold, at, digits), evaluate(answer, at, digits)
    return (left, digits), (right, digits)


def _beyond(gold: Tree, answer: Tree) -> bool | None:
    """Formulas of which at least one is too large: equal if they are written alike, different if only one is."""
    if gold == answer:
        return True
    sizes = []
    for tree in (gold, answer):
        try:
            evaluate(tree, point(0))
            sizes.append(False)
        except TooLarge:
            sizes.append(True)
        except (Undefined, Unreadable):
            return None
    huge = answer if sizes[1] else gold
    return False if sizes[0] != sizes[1] and _is_monomial(huge) else None


def _is_monomial(tree: Tree) -> bool:
    """Powers, factorials and products, in which nothing large can cancel."""
    if tree[0] in ("num", "e", "pi", "factorial", "^", "binom"):
        return True
    return tree[0] in ("*", "neg") and all(_is_monomial(part) for part in tree[1:])
