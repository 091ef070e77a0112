"""One line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass

OK, MISSING, BROKEN, NOTE = "ok", "missing", "broken", "note"


@dataclass(frozen=True)
class Check:
    """found: what there is. remedy: a command or a sentence, empty where nothing need be done. required: whether
    fastflow cannot run without it."""

    name: str
    state: str
    found: str
    remedy: str = ""
    required: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the doctor ends with exit code 1 for it: broken, or required and missing."""
        return self.state == BROKEN or (self.state == MISSING and self.required)
