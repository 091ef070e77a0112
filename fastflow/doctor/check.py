"""The result of one check: a line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass

OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"


@dataclass(frozen=True)
class Check:
    """What a check found. remedy: a command or a sentence; empty where nothing is to do. required: whether fastflow
    needs it to run."""

    name: str
    state: str
    found: str
    remedy: str = ""
    required: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the doctor ends with exit code 1: what is broken, and what is required and missing."""
        return self.state == BROKEN or (self.state == MISSING and self.required)
