"""What the checks report, and where in a kernel's source it happened."""

import sys
from pathlib import Path
from typing import NamedTuple

import triton

KINDS = {
    "bounds": "a lane that is switched on lies outside of its argument's view; the padding of rows is outside, too",
    "poison": "a load of an element that nobody wrote",
    "race": "two programs touch one address and at least one writes, or two lanes of one store share an address",
    "reread": "a program loads an address that it stored to before, which needs a barrier between its threads",
    "gap": "an element of an output that no program wrote",
    "overflow": "a sum, difference or product of int32 that wraps",
    "undefined": "a load that switches lanes off and does not say what they hold (`other`)",
    "bfloat16": "arithmetic on bfloat16, which Triton's interpreter computes wrongly: nothing here can check it",
    "assertion": "a device_assert of the kernel that fails",
    "grid": "a grid that no GPU launches",
    "answer": "an op whose result is not that of the float64 reference",
    "order": "an op whose result depends on the order of the programs",
}
_PASSED_OVER = tuple(str(Path(module).parent) for module in (triton.__file__, __file__))


class Finding(NamedTuple):
    """The first of its kind at this place, in words."""

    kind: str  # of KINDS
    subject: str  # a kernel, or an op
    place: str  # file:line, or empty
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}{' at ' if self.place else ''}{self.place}: {self.words}"


class Findings:
    """All that one case reports; each kind once a place."""

    def __init__(self):
        self._found: dict[tuple[str, str, str], Finding] = {}

    def add(self, kind: str, subject: str, words: str, place: str = "") -> None:
        assert kind in KINDS, kind
        self._found.setdefault((kind, subject, place), Finding(kind, subject, place, words))

    def __iter__(self):
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)


def place_in_kernel() -> str:
    """file:line of the statement that a kernel executes at the moment."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PASSED_OVER):
            return short_place(file, frame.f_lineno)
        frame = frame.f_back
    return ""


def short_place(file: str, line: int) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line}"
