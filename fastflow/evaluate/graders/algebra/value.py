"""What a formula is worth: exact fractions where it can be, many digits elsewhere, and no more than a bounded effort.

Formulas with variables are compared at several points: an identity holds at all of them, and two formulas that differ
agree at none but by an accident of many digits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from fastflow.evaluate.graders.algebra.expression import Tree, Unreadable

Number = Any  # Fraction, mpmath.mpf or mpmath.mpc

DIGITS = 80  # carried
SPARE = 35  # of these, which rounding may spoil
MOST_BITS = 40_000  # of an exact number
MOST_MAGNITUDE = 10**6  # of the binary exponent of a number with rounded digits
MOST_TERMS = 2_000  # of a sum or product
POINTS = 4  # at which formulas with variables are compared; the first half positive, the others of either sign


class TooLarge(Exception):
    """A number beyond what is computed."""


class Undefined(Exception):
    """No value, such as a division by zero."""


def point(index: int) -> Mapping[str, Number]:
    """Values for all variables, the same ones each time: between 0.3 and 2.7, or below 1, some of them negative."""
    return _Point(index)


class _Point(dict[str, Number]):
    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def __missing__(self, name: str) -> Number:
        digest = hashlib.sha256(f"{name}:{self._index}".encode()).digest()
        share = Fraction(int.from_bytes(digest[:6], "big"), 2**48)
        low, width = ((3, 24), (1, 8))[self._index % 2]  # tenths
        size = (low + width * share) / 10
        negative = self._index >= POINTS // 2 and (self._index == POINTS // 2 or digest[6] % 2)
        self[name] = mpmath.mpf(size.numerator) / size.denominator * (-1 if negative else 1)
        return self[name]


def evaluate(tree: Tree, at: Mapping[str, Number], digits: int = DIGITS) -> Number:
    """The value at a point. Raises TooLarge, Undefined or Unreadable."""
    try:
        with mpmath.workdps(digits):
            value = _bounded(_evaluate(tree, at))
            if isinstance(value, Fraction) or value == 0 or abs(value) > mpmath.mpf(10) ** (-digits // 2):
                return value
        with mpmath.workdps(3 * digits):  # a zero that rounding hides shrinks with more digits, another number does not
            closer = _evaluate(tree, at)
            return Fraction(0) if abs(closer) < abs(value) * mpmath.mpf(10) ** (-digits // 2) else closer
    except (ZeroDivisionError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise Undefined(str(error)) from error


def agree(left: Number, right: Number, digits: int = DIGITS) -> bool:
    """Whether two values, computed with so many digits, are the same number."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    with mpmath.workdps(digits):
        left, right = _rounded(left), _rounded(right)
        if mpmath.isinf(left) or mpmath.isinf(right):
            return bool(left == right)
        error, size = abs(left - right), max(abs(left), abs(right))
        return bool(error <= size * mpmath.mpf(10) ** (SPARE - digits))


def quotient(left: Number, right: Number) -> Number:
    """The ratio of two values, exact where both are."""
    with mpmath.workdps(DIGITS):
        return _arithmetic("/", [left, right])


def digits_for(number: Number) -> int:
    """Digits that tell this number from others as large, so that a small term beside a large one is not lost."""
    if isinstance(number, Fraction) or mpmath.isinf(number) or number == 0:
        return DIGITS
    return DIGITS + max(0, int(mpmath.mag(number) * 0.302))


def is_real(number: Number) -> bool:
    """Whether it has no imaginary part beyond rounding."""
    return not isinstance(number, mpmath.mpc) or abs(number.imag) <= abs(number) * mpmath.mpf(10) ** (SPARE - DIGITS)


def _evaluate(tree: Tree, at: Mapping[str, Number]) -> Number:
    name = tree[0]
    if name == "num":
        return tree[1]
    if name == "var":
        return at[tree[1]]
    if name in _CONSTANTS:
        return _CONSTANTS[name]()
    if name in ("sum", "prod"):
        return _series(tree, at)
    values = [_evaluate(part, at) for part in tree[1:]]
    if name in ("+", "-", "*", "/", "neg"):
        return _bounded(_arithmetic(name, values))
    if name == "^":
        return _power(*values)
    if name == "root":
        return _root(*values)
    if name == "factorial":
        return _factorial(values[0])
    if name == "binom":
        return _binomial(*values)
    if name in ("floor", "ceil"):
        if isinstance(values[0], Fraction):
            return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
        return Fraction(int((mpmath.floor if name == "floor" else mpmath.ceil)(values[0])))
    if name == "abs" and isinstance(values[0], Fraction):
        return abs(values[0])
    if name == "degrees":
        return _rounded(values[0]) * mpmath.pi / 180
    if name == "exp":
        return _power(mpmath.e(), values[0])
    return _FUNCTIONS[name](_rounded(values[0]))


_CONSTANTS = {
    "pi": lambda: +mpmath.pi,
    "e": lambda: +mpmath.e,
    "i": lambda: mpmath.mpc(0, 1),
    "infty": lambda: mpmath.inf,
}
_FUNCTIONS = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "asin": mpmath.asin, "acos": mpmath.acos, "atan": mpmath.atan, "sinh": mpmath.sinh, "cosh": mpmath.cosh,
    "tanh": mpmath.tanh, "ln": mpmath.ln, "log": mpmath.ln, "abs": abs,
}  # fmt: skip


def _arithmetic(name: str, values: list[Number]) -> Number:
    if name == "neg":
        return -values[0]
    left, right = values
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = _rounded(left), _rounded(right)
    if name in "+-":
        total = left + right if name == "+" else left - right
        return _cancelled(total, left, right)
    return left * right if name == "*" else left / right


def _cancelled(total: Number, left: Number, right: Number) -> Number:
    """Zero where two rounded numbers cancel in all the digits that they have."""
    if isinstance(total, Fraction) or mpmath.isinf(total):
        return total
    return total if abs(total) > max(abs(left), abs(right)) * mpmath.mpf(10) ** (12 - mpmath.mp.dps) else mpmath.mpf(0)


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        size = base.numerator.bit_length() + base.denominator.bit_length()
        if abs(base) in (0, 1) or abs(exponent) * size <= MOST_BITS:
            return base ** int(exponent) if abs(base) != 1 else Fraction(1 if exponent % 2 == 0 else base)
    base, exponent = _rounded(base), _rounded(exponent)
    if base == 0:
        if mpmath.re(exponent) <= 0:
            raise Undefined("a power of zero")
        return mpmath.mpf(0)
    if mpmath.isinf(base) or mpmath.isinf(exponent):
        raise Undefined("a power of infinity")
    _check_magnitude(abs(exponent) * abs(mpmath.log(base)))
    return mpmath.power(base, exponent)


def _root(radicand: Number, degree: Number) -> Number:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 < degree < 1000:
        raise Undefined("a root of this degree")
    if isinstance(radicand, Fraction) and radicand < 0 and degree % 2:
        return -_root(-radicand, degree)
    return mpmath.root(_rounded(radicand), int(degree)) if degree > 2 else mpmath.sqrt(_rounded(radicand))


def _factorial(number: Number) -> Number:
    if isinstance(number, Fraction) and number.denominator == 1:
        if number < 0:
            raise Undefined("a factorial of a negative number")
        if number <= 2000:
            return Fraction(math.factorial(int(number)))
    number = _rounded(number)
    _check_magnitude(abs(number) * mpmath.log(abs(number) + 2))
    return mpmath.gamma(number + 1)


def _binomial(n: Number, k: Number) -> Number:
    if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1:
        if 0 <= k <= n <= 3000:
            return Fraction(math.comb(int(n), int(k)))
        if min(k, n - k) > 20_000:
            raise TooLarge("a binomial coefficient")
        if 0 <= min(k, n - k) <= 50 and n > 0:
            return Fraction(math.comb(int(n), int(min(k, n - k))))
    n, k = _rounded(n), _rounded(k)
    _check_magnitude(abs(n) + abs(k))
    return mpmath.binomial(n, k)


def _series(tree: Tree, at: Mapping[str, Number]) -> Number:
    name, index, first, last, term = tree
    start, end = _evaluate(first, at), _evaluate(last, at)
    whole = all(isinstance(bound, Fraction) and bound.denominator == 1 for bound in (start, end))
    if not whole or end - start > MOST_TERMS:
        raise Unreadable("a series that is not added up")
    total: Number = Fraction(0 if name == "sum" else 1)
    for step in range(int(start), int(end) + 1):
        value = _evaluate(term, _Bound(at, index[1], Fraction(step)))
        total = _bounded(_arithmetic("+" if name == "sum" else "*", [total, value]))
    return total


class _Bound(dict[str, Number]):
    """A point with one variable at a value of its own."""

    def __init__(self, outer: Mapping[str, Number], name: str, value: Number) -> None:
        super().__init__({name: value})
        self._outer = outer

    def __missing__(self, name: str) -> Number:
        return self._outer[name]


def _bounded(number: Number) -> Number:
    if isinstance(number, Fraction):
        if max(number.numerator.bit_length(), number.denominator.bit_length()) > 4 * MOST_BITS:
            raise TooLarge("a number of very many digits")
    elif mpmath.isnan(number):
        raise Undefined("not a number")
    return number


def _rounded(number: Number) -> Number:
    if isinstance(number, Fraction):
        return mpmath.mpf(number.numerator) / number.denominator
    return number


def _check_magnitude(nats: Number) -> None:
    if nats > MOST_MAGNITUDE:
        raise TooLarge("a number of over a million bits")
