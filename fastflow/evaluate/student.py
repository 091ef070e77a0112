"""Student's t: how many standard errors a 95 % interval reaches where few independent draws gave the error."""

from __future__ import annotations

import functools
import math

import numpy as np


@functools.lru_cache
def student_95(freedom: int) -> float:
    """The two-sided 95 % quantile for a whole number of degrees of freedom, at least 1.

    >>> round(student_95(1), 3), round(student_95(11), 3), round(student_95(1000), 3)
    (12.706, 2.201, 1.962)
    """
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        low, high = (angle, high) if _inside(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(angle)


def _inside(angle: float, freedom: int) -> float:
    """The probability of |t| below sqrt(freedom) tan(angle): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    is_odd = freedom % 2
    places = np.arange(1, (freedom - is_odd) // 2)
    factors = (2 * places - 1 + is_odd) / (2 * places + is_odd) * math.cos(angle) ** 2
    series = math.sin(angle) * (1 + float(np.cumprod(factors).sum()))
    if not is_odd:
        return series
    return 2 / math.pi * (angle + (series * math.cos(angle) if freedom > 1 else 0))
