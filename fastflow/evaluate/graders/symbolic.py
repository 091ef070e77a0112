"""What sympy knows and this package's own reader does not: `math-verify` behind one function.

It can take any time and any memory, and its own timer works on a main thread only: call it in a worker (`pool`).
"""

from __future__ import annotations

import re

from fastflow.errors import need

_FORMULA = re.compile(r"[\w\s\\{}()\[\].,+\-*/^=<>|!:;'%&]*", re.ASCII)
_REFUSED = re.compile(r"__|\b(?:import|lambda|eval|exec|open|print|os|sys)\b")


def require() -> None:
    """Raise FastflowError, saying what to install, where math-verify is missing."""
    need("math_verify", extra="grade", purpose="the grader math")


def same_by_sympy(gold: str, answer: str) -> bool | None:
    r"""Whether two LaTeX formulas are equal; None where one of them cannot be parsed.

    Only LaTeX is parsed: the library's reader of plain expressions executes them. Values are compared with 20 digits,
    where its default takes all below 1e-6 for equal.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    if not all(_is_formula(text) for text in (gold, answer)):
        return None
    try:
        parsed = [
            parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
            for text in (gold, answer)
        ]
        if not all(parsed):
            return None
        return bool(verify(parsed[0], parsed[1], float_rounding=20, numeric_precision=40, timeout_seconds=None))
    except (RecursionError, ArithmeticError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError):
        return None


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.fullmatch(text)) and not _REFUSED.search(text)
