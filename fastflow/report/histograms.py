"""How long the responses of base and policy are, and how probable, as histograms over each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from fastflow.drawing.figure import COLOURS, make_axes, to_svg
from fastflow.drawing.numbers import is_number, number
from fastflow.drawing.plot import SERIES_COLOURS, Plot
from fastflow.evaluate.scores import ResponseRow
from fastflow.report.evaluations import Subject

BINS = 24
NO_SURPRISE = (
    "The histogram of surprise is left out: not all kept responses of {names} carry log-probabilities (logprob)."
)
ENTROPY = "Entropy per token, the sum of −log π over the sum of the lengths of all responses: {values} nats."  # noqa: RUF001


def histograms(subjects: Sequence[Subject], prefix: str, *, sampled: bool) -> tuple[list[Plot], list[str]]:
    """Draw length and surprise of the models' responses. Returns the plots, and what is to be said beside them.

    sampled: whether the responses are plain samples, whose log-probs estimate an entropy.
    """
    known = [subject for subject in subjects if subject.rows]
    if not known:
        return [], []
    plots, notes = [_histogram("Response length", "tokens", known, _length, f"{prefix}-length")], []
    silent = [subject.name for subject in known if not all(is_number(row["logprob"]) for row in subject.rows)]
    if silent:
        notes.append(NO_SURPRISE.format(names=", ".join(silent)))
    speaking = [subject for subject in known if subject.name not in silent]
    if speaking:
        title, unit = "Surprise per token", "nats, −log π / length of each response"  # noqa: RUF001
        plots.append(_histogram(title, unit, speaking, _surprise, f"{prefix}-surprise"))
    entropies = [(one.name, value) for one in speaking if sampled and (value := _entropy(one.rows)) is not None]
    if entropies:
        notes.append(ENTROPY.format(values=", ".join(f"{name} {number(value)}" for name, value in entropies)))
    return [plot for plot in plots if plot is not None], notes


def _length(row: ResponseRow) -> float | None:
    return float(row["tokens"]) if is_number(row["tokens"]) else None


def _surprise(row: ResponseRow) -> float | None:
    """-log p / length of one response, in nats. Short responses count as much as long ones in its mean."""
    logprob, tokens = row["logprob"], row["tokens"]
    return -logprob / tokens if is_number(logprob) and is_number(tokens) and tokens > 0 else None


def _entropy(rows: Sequence[ResponseRow]) -> float | None:
    """Estimate the entropy per token, in nats, as a run's `token_entropy` does."""
    known = [row for row in rows if is_number(row["logprob"]) and is_number(row["tokens"])]
    tokens = sum(row["tokens"] for row in known)
    return -sum(row["logprob"] for row in known) / tokens if tokens > 0 else None


def _histogram(
    title: str, unit: str, subjects: Sequence[Subject], value: Callable[[ResponseRow], float | None], prefix: str
) -> Plot | None:
    import numpy as np

    values = [[one for row in subject.rows if (one := value(row)) is not None] for subject in subjects]
    every = [one for of_subject in values for one in of_subject]
    if not every:
        return None
    low, high = min(every), max(every)
    usual = float(np.percentile(every, 99))
    if usual > low and high - low > 1.5 * (usual - low):  # a few far ones would press all others into one bar
        unit, high = f"{unit}, the last bar: {number(usual)} and more", usual
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    figure, axes = make_axes()
    legend, spoken = [], []
    for subject, found, colour in zip(subjects, values, itertools.cycle(SERIES_COLOURS), strict=False):
        if not found:
            continue
        shares = 100 * np.histogram(np.minimum(found, high), bins=edges)[0] / len(found)
        axes.stairs(shares, edges, fill=True, color=COLOURS[colour], alpha=0.2, linewidth=0)
        axes.stairs(shares, edges, color=COLOURS[colour], linewidth=1.5)
        p10, p50, p90 = np.percentile(found, [10, 50, 90])
        legend.append((subject.name, colour, "area", number(float(np.mean(found)))))
        spoken.append(
            f"{subject.name} mean {number(float(np.mean(found)))}, median {number(float(p50))}, "
            f"10th to 90th percentile {number(float(p10))} to {number(float(p90))}"
        )
    axes.set_xlabel(unit.split(",")[0])
    axes.set_ylim(bottom=0)
    description = f"{title}, {unit}, share of responses in percent: {'; '.join(spoken)}"
    return Plot(title, unit, to_svg(figure, prefix), tuple(legend), description)
