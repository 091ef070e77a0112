"""One check of `fastflow verify`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the table: a measured value, the largest that passes, its unit, and what the line compares."""

    name: str
    value: float
    bound: float
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound; NaN is not."""
        return self.value <= self.bound
