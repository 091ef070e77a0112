"""What sympy knows and this package's own reader does not: `math-verify` behind one function.

It can take any time and any memory, and its own timer works on a main thread only: call it in a worker (`pool`).
"""

from __future__ import annotations

import re
from typing import Any

from fastflow.errors import need

_FORMULA = re.compile(r"[\w\s\\{}()\[\].,+\-*/^=<>|!:;%&]*", re.ASCII)
_REFUSED = re.compile(r"__|\\ldots\b|\b(?:import|lambda|eval|exec|open|print|os|sys)\b")


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
            parse(
                f"${text}$",
                [LatexExtractionConfig()],
                fallback_mode="no_fallback",
                parsing_timeout=None,
                raise_on_error=True,
            )
            for text in (gold, answer)
        ]
        if not all(parsed) or any(_is_endless(part) for parts in parsed for part in parts):
            return None
        equal = verify(
            parsed[0], parsed[1], float_rounding=20, numeric_precision=40, timeout_seconds=None, raise_on_error=True
        )
        return bool(equal) and _agree(parsed[0][0], parsed[1][0])
    except MemoryError:
        raise
    except Exception:  # antlr, sympy and the library between them raise dozens of types for what is no formula
        return None


def _is_endless(expression: Any) -> bool:
    """Whether infinity or no number at all stands in it: sympy takes such for equal to others."""
    from sympy import nan, oo, zoo

    return bool(getattr(expression, "has", lambda *parts: True)(oo, -oo, zoo, nan))


def _agree(gold: Any, answer: Any) -> bool:
    """Whether two numbers agree in 20 digits of the larger one; true of all that are not both numbers."""
    from sympy import N

    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    left, right = N(gold, 40), N(answer, 40)
    return bool(abs(left - right) <= abs(left) * 1e-20)


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.fullmatch(text)) and not _REFUSED.search(text)
