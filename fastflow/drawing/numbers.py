"""Numbers for people, and which JSON values are numbers at all."""

from __future__ import annotations

import math
import re
from typing import Any

MOST_PLACES = 9  # after the point


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def places(value: float, significant: int) -> int:
    """Return the digits after the point with which so many significant ones are shown; 0 for what is not finite."""
    if not value or not math.isfinite(value):
        return 0
    return min(significant - 1 - math.floor(math.log10(abs(value))), MOST_PLACES)


def number(value: float, digits: int = 3) -> str:
    """Write a number for people: `digits` significant ones (whole below 10k), thousands as k, a real minus sign."""
    if abs(value) >= 1e4:
        text = f"{value / 1e6:.{digits}g}M" if abs(value) >= 1e6 else f"{value / 1e3:.{digits}g}k"
    elif 0 < abs(value) < 1e-3:
        text = re.sub(r"\.?0*e-0*", "e-", f"{value:.{digits - 1}e}")
    else:
        text = f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return text.replace("-", "−")  # noqa: RUF001
