"""Which metrics the page of a sweep shows, and how it names and scales them."""

from __future__ import annotations

from dataclasses import dataclass

from fastflow.drawing.numbers import places
from fastflow.report.panels import panels
from fastflow.report.tables import LABELS
from fastflow.run.evaluated import is_share, split_name

USUAL = (
    *("slope", "length_mean", "truncated_share", "malformed_share", "repetition", "reward_mean", "token_entropy"),
    *("sequence_entropy", "logprob_mean", "base_logprob_mean", "effective_sample_size", "grad_norm"),
)
ACCURACY = ("accuracy", "valid_share")  # of an evaluation, the first that is there
DIVERSITY = ("distinct_share", "sequence_entropy")
_TITLES = {
    "effective_sample_size": ("Effective sample size", "%"),
    "grad_norm": ("Gradient norm", "before clipping"),
}


@dataclass(frozen=True)
class Measure:
    """How one metric is shown. scale: multiplies its values, by 100 for percent."""

    metric: str
    title: str
    unit: str
    scale: float
    from_zero: bool
    may_be_log: bool

    def show(self, value: float, error: float | None) -> str:
        """Write a mean, and its standard error where there is one: down to the first digit of the error, with at most
        three significant ones of the mean, but never fewer than two places (one for percent).
        """
        least = 1 if self.scale == 100 else 2
        wanted = [(value, 3), (error, 1)]
        digits = max(least, min((places(self.scale * number, some) for number, some in wanted if number), default=0))
        text = f"{self.scale * value:.{digits}f}" + ("" if error is None else f" ± {self.scale * error:.{digits}f}")
        return text.replace("-", "−")  # noqa: RUF001


def measure_of(metric: str) -> Measure:
    """Describe any metric; one that the report does not know keeps its own name."""
    if (evaluated := split_name(metric)) is not None:
        task, measure = evaluated
        share = is_share(measure)
        return Measure(metric, f"{task} {measure}", "%" if share else "", 100.0 if share else 1.0, share, False)
    found = [(panel, mark) for _, group in panels("") for panel in group for mark in panel.marks if metric in mark.keys]
    panel = found[0][0] if found else None
    share = metric.endswith("_share") or (panel is not None and panel.scale == 100) or metric.endswith("accuracy")
    title, unit = _TITLES.get(metric) or LABELS.get(metric) or (metric.replace("_", " ").capitalize(), "")
    return Measure(
        metric=metric,
        title=title,
        unit="%" if share else unit,
        scale=100.0 if share else 1.0,
        from_zero=share or (panel is not None and panel.from_zero),
        may_be_log=panel is not None and panel.may_be_log,
    )
