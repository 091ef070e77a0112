"""What a study claims, and whether its figures meet the claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Unfinished = Mapping[str, Sequence[str]]  # runs of a sweep that failed or wrote nothing, by their group


@dataclass(frozen=True)
class StudyVerdict:
    """One claim that a sweep checks. found, bar: the figure and what it is held to, in words."""

    claim: str
    found: str
    bar: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'MISSED'}: {self.claim}: {self.found} (bar: {self.bar})"
