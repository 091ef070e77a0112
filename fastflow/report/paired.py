"""Differences between two models on the same prompts, measure by measure, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastflow.evaluate.estimates import estimate, with_interval
from fastflow.evaluate.scores import (
    HEADINGS,
    PLAIN,
    PerPrompt,
    ResponseRow,
    by_question,
    is_right,
    majority,
    pass_at,
    right_share,
)


@dataclass(frozen=True)
class Difference:
    """A mean over prompts of the difference, in the measure's own unit. low, high: None where it has no interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def leaves_out_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def show(self, scale: float = 1.0) -> str:
        """Write it for people, such as "+3.1 (+1.0 to +5.2)". scale: 100 for percent."""
        if self.low is None or self.high is None:
            return _signed(scale * self.value)
        return f"{_signed(scale * self.value)} ({_signed(scale * self.low)} to {_signed(scale * self.high)})"


def paired(rows: Sequence[ResponseRow], base: Sequence[ResponseRow], measure: PerPrompt) -> Difference | None:
    """A measure of `rows` less that of `base`, prompt by prompt. None where both share no prompt."""
    ours, theirs = _values(rows, measure), _values(base, measure)
    both = [question for question in ours if question in theirs]
    if not both:
        return None
    found = with_interval(estimate([ours[question] - theirs[question] for question in both]))
    return Difference(found["value"], found["low"], found["high"])


def pass_at_of(k: int) -> PerPrompt:
    """The measure pass@k of one prompt's responses."""
    return lambda responses: pass_at(sum(map(is_right, responses)), len(responses), k)


def measure_of(heading: str) -> tuple[PerPrompt, float] | None:
    """The measure that a row of an evaluation's table shows, and the scale of its unit; None for other rows."""
    name, _, count = heading.partition("@")
    if name == "avg" and count.isdigit():
        return right_share, 100.0
    if name == "pass" and count.isdigit():
        return pass_at_of(int(count)), 100.0
    if name == "maj" and count.isdigit():
        return majority, 100.0
    for plain, scale in (("tokens", 1.0), ("truncated", 100.0), ("well_formed", 100.0)):
        if heading == HEADINGS[plain]:
            return PLAIN[plain], scale
    return None


def _values(rows: Sequence[ResponseRow], measure: PerPrompt) -> dict[int, float]:
    return {question: measure(responses) for question, responses in by_question(rows).items()}


def _signed(value: float) -> str:
    return f"{value + 0.0:+.1f}".replace("-0.0", "+0.0").replace("-", "−")  # noqa: RUF001
