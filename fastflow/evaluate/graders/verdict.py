"""What a grader can say of a response. The four are never merged: a limit that was hit is no wrong answer."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """right: the response's answer equals the gold answer. wrong: it has another answer. unparsed: no answer was found,
    or nothing that can be compared. timed_out: the comparison hit its limit of time or memory and was killed.
    """

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMED_OUT = "timed_out"


def verdict_of(outcome: bool | None) -> Verdict:
    """The verdict on a comparison that may have found nothing to compare."""
    if outcome is None:
        return Verdict.UNPARSED
    return Verdict.RIGHT if outcome else Verdict.WRONG
