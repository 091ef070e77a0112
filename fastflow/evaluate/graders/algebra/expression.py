r"""Formulas as trees: LaTeX and plain notation read by recursive descent. Nothing is ever executed.

A tree is a tuple: ("num", Fraction), ("var", name), (operation, operands ...).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]

LONGEST = 2000  # characters of a formula
DEEPEST = 60  # nested groups
MOST_OPERATIONS = 300  # in one formula, since each makes the tree deeper
MOST_DIGITS = 1500  # of one number

_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>\d*\.\d*(?:\\overline\s*\{\d+\}|\\dot\s*\{?\d\}?(?:\d*\\dot\s*\{?\d\}?)?|\(\d+\)))"
    r"|(?P<dotted>\d*\.\d+(?:\\ldots|\.\.\.))"
    r"|(?P<number>\d+\.\d+(?:[eE][+-]?\d{1,4}(?!\d))?|\d+(?:[eE][+-]?\d{1,4}(?![\d.]))|\d+\.?(?!\d)|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<letter>[A-Za-z])|(?P<symbol>\S))"
)
_NAMED = {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "ln", "log", "exp",
          "abs", "floor", "ceil", "max", "min", "gcd", "lcm"}  # fmt: skip
_GREEK = {"theta", "alpha", "beta", "gamma", "delta", "epsilon", "lambda", "mu", "nu", "rho", "sigma", "tau", "phi",
          "psi", "omega", "xi", "zeta", "eta", "kappa", "Gamma", "Delta", "Omega", "Sigma", "Phi", "Psi"}  # fmt: skip
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Unreadable(Exception):
    """No formula that this grammar knows."""


def parse(text: str) -> Tree:
    """The tree of a normalised formula. Raises Unreadable."""
    if len(text) > LONGEST:
        raise Unreadable("too long")
    parser = _Parser(text)
    tree = parser.sum()
    if parser.kind:
        raise Unreadable(f"unexpected {parser.text!r}")
    return tree


def variables(tree: Tree) -> set[str]:
    """Names of the variables that occur; constants such as pi are not among them."""
    if tree[0] == "var":
        return {tree[1]}
    return {name for part in tree[1:] if isinstance(part, tuple) for name in variables(part)}


class _Parser:
    def __init__(self, text: str) -> None:
        self._source, self._position, self._depth = text, 0, 0
        self.kind, self.text = "", ""
        self._bars = 0
        self._operations = 0
        self._next()

    def sum(self) -> Tree:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("nested too deeply")
        tree = self._product()
        while self.text in ("+", "-") and self.kind == "symbol":
            self._count()
            sign = self._take()
            right = self._product()
            tree = (sign, tree, right)
        self._depth -= 1
        return tree

    def _product(self) -> Tree:
        tree = self._signed()
        while True:
            self._count()
            if self.kind == "symbol" and self.text in "*/":
                operation = self._take()
                tree = (operation, tree, self._signed())
            elif self._starts_factor():
                tree = self._juxtaposed(tree)
            else:
                return tree

    def _count(self) -> None:
        self._operations += 1
        if self._operations > MOST_OPERATIONS:
            raise Unreadable("too many operations")

    def _juxtaposed(self, left: Tree) -> Tree:
        """A product without a sign; a whole number before a fraction of whole numbers is a mixed number."""
        fraction = self.kind == "command" and self.text == "\\frac"
        digits = self.kind == "number"
        right = self._power()
        if fraction and _is_whole(left) and _is_proper(right):
            return ("+", left, right)
        if digits:  # "3 5/6"; two numbers in a row mean nothing else
            if _is_whole(left) and _is_whole(right) and self.kind == "symbol" and self.text == "/":
                self._take()
                mixed = ("/", right, self._power())
                if _is_proper(mixed):
                    return ("+", left, mixed)
            raise Unreadable("two numbers in a row")
        return ("*", left, right)

    def _signed(self) -> Tree:
        if self.kind == "symbol" and self.text in ("-", "+"):
            sign = self._take()
            self._depth += 1
            if self._depth > DEEPEST:
                raise Unreadable("nested too deeply")
            inner = self._signed_term()
            self._depth -= 1
            return ("neg", inner) if sign == "-" else inner
        return self._power()

    def _signed_term(self) -> Tree:
        """What a sign holds for: a mixed number as a whole."""
        tree = self._signed()
        if _is_whole(tree) and self._starts_factor():
            return self._juxtaposed(tree)
        return tree

    def _power(self) -> Tree:
        base = self._postfix(self._atom())
        if self.kind == "symbol" and self.text == "^":
            self._take()
            return self._postfix(("^", base, self._exponent()))
        return base

    def _exponent(self) -> Tree:
        if self.kind == "symbol" and self.text == "{":
            exponent = self._group()
        elif self.kind == "symbol" and self.text in "+-":
            sign = self._take()
            inner = self._postfix(self._atom())
            exponent = ("neg", inner) if sign == "-" else inner
        else:
            exponent = self._postfix(self._atom())
        if self.kind == "symbol" and self.text == "^":  # a tower is read from the top
            self._take()
            self._depth += 1
            if self._depth > DEEPEST:
                raise Unreadable("nested too deeply")
            exponent = ("^", exponent, self._exponent())
            self._depth -= 1
        return exponent

    def _postfix(self, tree: Tree) -> Tree:
        while (self.kind == "symbol" and self.text in ("!", "%")) or self.text == "\\degree":
            self._count()
            sign = self._take()
            if sign == "!":
                tree = ("factorial", tree)
            else:
                tree = ("/", tree, ("num", Fraction(100))) if sign == "%" else ("degrees", tree)
        return tree

    def _atom(self) -> Tree:
        kind, text = self.kind, self.text
        if kind in ("number", "repeating", "dotted"):
            self._take()
            return ("num", _number(kind, text))
        if kind == "letter":
            return self._variable(self._take())
        if kind == "command":
            return self._command(self._take()[1:])
        if text == "|":
            if self._bars:
                raise Unreadable("bars within bars")
            self._take()
            self._bars += 1
            inner = self.sum()
            self._bars -= 1
            self._expect("|")
            return ("abs", inner)
        if text in _CLOSING:
            return self._group()
        raise Unreadable(f"unexpected {text!r}")

    def _group(self) -> Tree:
        closing, bars = _CLOSING[self._take()], self._bars
        self._bars = 0
        tree = self.sum()
        self._bars = bars
        self._expect(closing)
        return tree

    def _variable(self, name: str) -> Tree:
        if self.text == "_" and self.kind == "symbol":
            self._take()
            name += f"_{self._raw_argument()}"
        if self.kind == "symbol" and self.text == "'":
            raise Unreadable("a prime")
        return {"e": ("e",), "i": ("i",)}.get(name, ("var", name))

    def _raw_argument(self) -> str:
        if self.text != "{":
            return self._take()
        start, depth = self._position, 1
        while depth:
            if not self.kind:
                raise Unreadable("an open brace")
            self._next()
            depth += (self.text == "{") - (self.text == "}")
        raw = self._source[start : self._position - 1]
        self._take()
        return re.sub(r"\s", "", raw)

    def _command(self, name: str) -> Tree:
        if name in ("pi", "infty"):
            return (name,)
        if name in _GREEK:
            return self._variable(f"\\{name}")
        if name == "frac":
            return ("/", self._argument(), self._argument())
        if name == "binom":
            return ("binom", self._argument(), self._argument())
        if name in ("sqrt", "root"):
            return self._root(whole_number=name == "root")
        if name in ("lfloor", "lceil"):
            inner = self.sum()
            self._expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return ("floor" if name == "lfloor" else "ceil", inner)
        if name in ("sum", "prod"):
            return self._series(name)
        if name in _NAMED:
            return self._function(name)
        raise Unreadable(f"unknown \\{name}")

    def _root(self, *, whole_number: bool) -> Tree:
        degree: Tree = ("num", Fraction(2))
        if self.text == "[":
            degree = self._group()
        if self.text == "(":
            return ("root", self._group(), degree)
        if whole_number:  # the sign √ covers a whole number, the macro only a digit
            return ("root", self._postfix(self._atom()), degree)
        return ("root", self._argument(), degree)

    def _argument(self) -> Tree:
        r"""What a macro takes: a group, a digit, a letter or a command."""
        if self.text == "{":
            return self._group()
        if self.kind == "number":
            digit, rest = self.text[0], self.text[1:]
            if not digit.isdigit():
                raise Unreadable("a number without a digit in front")
            if rest:
                self._position -= len(rest)
            self._next()
            return ("num", Fraction(int(digit)))
        return self._atom()

    def _series(self, name: str) -> Tree:
        bounds: dict[str, Tree] = {}
        index = ""
        while self.text in ("_", "^") and self.kind == "symbol":
            side = self._take()
            if side == "^":
                bounds[side] = self._argument()
                continue
            self._expect("{")
            index = self._take()
            self._expect("=")
            bounds[side] = self.sum()
            self._expect("}")
        if len(bounds) != 2:
            raise Unreadable("a series without bounds")
        return (name, ("var", index), bounds["_"], bounds["^"], self._product())

    def _function(self, name: str) -> Tree:
        base: Tree | None = None
        power: Tree | None = None
        while self.kind == "symbol" and self.text in ("_", "^"):
            if self._take() == "_":
                base = self._argument()
            else:
                power = self._exponent()
        if name in ("max", "min", "gcd", "lcm"):
            raise Unreadable(name)
        tree: Tree = (name, self._function_argument())
        if base is not None:
            if name != "log":
                raise Unreadable("a base")
            tree = ("/", tree, ("ln", base))
        if power is None:
            return tree
        if power == ("neg", ("num", Fraction(1))) and name in ("sin", "cos", "tan"):
            return (f"a{name}", tree[1])
        return ("^", tree, power)

    def _function_argument(self) -> Tree:
        if self.kind == "symbol" and self.text in "({[":
            return self._group()
        negative = self.kind == "symbol" and self.text == "-"
        if negative:
            self._take()
        tree = self._power()
        while self._starts_factor() and not (self.kind == "command" and self.text[1:] in _NAMED) and self.text != "(":
            self._count()
            tree = ("*", tree, self._power())
        if self.kind == "symbol" and self.text == "/" and tree[0] in ("pi", "num", "*", "var"):  # sin pi/4
            self._take()
            tree = ("/", tree, self._power())
        return ("neg", tree) if negative else tree

    def _starts_factor(self) -> bool:
        if self.kind in ("number", "letter", "repeating", "dotted"):
            return True
        if self.kind == "command":
            return (self.text not in ("\\rfloor", "\\rceil", "\\degree") and not self.text.startswith("\\r")) or (
                self.text in ("\\root", "\\rho"))  # fmt: skip
        return self.kind == "symbol" and (self.text in "({" or (self.text == "|" and not self._bars))

    def _expect(self, text: str) -> None:
        if self.text != text:
            raise Unreadable(f"{text} expected, not {self.text!r}")
        self._next()

    def _take(self) -> str:
        text = self.text
        if not self.kind:
            raise Unreadable("the end")
        self._next()
        return text

    def _next(self) -> None:
        found = _TOKEN.match(self._source, self._position)
        if found is None or found.lastgroup is None:
            self.kind, self.text = "", ""
            self._position = len(self._source)
            return
        self.kind, self.text, self._position = found.lastgroup, found.group(found.lastgroup), found.end()


def _number(kind: str, text: str) -> Fraction:
    if len(text) > MOST_DIGITS:
        raise Unreadable("too many digits")
    if kind == "number":
        return Fraction(text.rstrip("."))
    if kind == "repeating":
        head = re.match(r"(\d*)\.(\d*)", text)
        assert head is not None
        whole, before = head.groups()
        tail = re.sub(r"\\dot\s*", "", text[head.end() :])
        period = re.sub(r"\D", "", tail)
        return _periodic(whole, before, period)
    whole, digits = re.sub(r"\\ldots|\.\.\.$", "", text).split(".")
    for length in range(1, len(digits) // 2 + 1):  # the shortest tail that is written at least twice
        period = digits[-length:]
        repeats = 3 if length == 1 and len(digits) > 2 else 2
        if digits.endswith(period * repeats):
            while digits.endswith(period):
                digits = digits[:-length]
            return _periodic(whole, digits, period)
    raise Unreadable("digits that go on")


def _periodic(whole: str, before: str, period: str) -> Fraction:
    start = Fraction(int((whole or "0") + before), 10 ** len(before))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))


def _is_whole(tree: Tree) -> bool:
    return tree[0] == "num" and tree[1].denominator == 1


def _is_proper(tree: Tree) -> bool:
    """A fraction of whole numbers below one."""
    return tree[0] == "/" and _is_whole(tree[1]) and _is_whole(tree[2]) and tree[1][1] < tree[2][1]
