"""Means over prompts with their standard errors and 95 % intervals; differences of two models, paired by prompt.

Prompts are the independent draws; the samples of one prompt are not. The standard error is therefore the standard
deviation of the prompts' values over the root of their number, and contains the noise of sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from fastflow.evaluate.student import student_95

NORMAL_95 = 1.959964
_ROUNDING = 1e-12  # relative
Estimate = dict[str, Any]


def estimate(values: Sequence[float] | Float64[np.ndarray, " prompts"]) -> Estimate:
    """Mean and standard error over prompts; a single prompt has no standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "error": error}


def over_prompts(values: Sequence[float | None]) -> Estimate:
    """Mean and standard error over the prompts that have a value, and their number."""
    known = [value for value in values if value is not None]
    if not known:
        return {"value": None, "error": None, "prompts": 0}
    return {**estimate(known), "prompts": len(known)}


def with_interval(found: Mapping[str, Any], *, freedom: int | None = None) -> Estimate:
    """Add to an estimate the ends of its 95 % interval, low and high.

    freedom: degrees of freedom of the error, for an interval by Student's t; without them it is normal. The ends are
    None without a standard error, and where the prompts do not differ: few that agree prove no certainty.
    """
    if found["error"] is None or found["error"] <= _ROUNDING * abs(found["value"]):
        return {**found, "low": None, "high": None}
    half = (NORMAL_95 if freedom is None else student_95(freedom)) * found["error"]
    return {**found, "low": found["value"] - half, "high": found["value"] + half}


def paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Estimate:
    """Mean difference over the prompts that have both values, with its 95 % interval."""
    both = [one - other for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
    return with_interval(over_prompts(both))
