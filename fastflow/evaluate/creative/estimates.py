"""Estimates over prompts, some of which may have no value; and differences of two models, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastflow.evaluate.scores import estimate, with_interval

Estimate = dict[str, Any]


def over_prompts(values: Sequence[float | None]) -> Estimate:
    """Mean and standard error over the prompts that have a value, and their number."""
    known = [value for value in values if value is not None]
    if not known:
        return {"value": None, "error": None, "prompts": 0}
    return {**estimate(known), "prompts": len(known)}


def paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Estimate:
    """Mean difference over the prompts that have both values, with a 95 % interval (normal)."""
    both = [one - other for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
    return with_interval(over_prompts(both))
