"""What a run's evaluations came to, over the steps of its training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from fastflow.drawing.figure import COLOURS, make_axes, to_svg
from fastflow.drawing.numbers import is_number, number
from fastflow.drawing.plot import SERIES_COLOURS, Plot
from fastflow.evaluate.estimates import NORMAL_95
from fastflow.report.evaluations import Subject

Points = list[tuple[float, float, float]]  # step, value and standard error in percent


def progress_plot(subjects: Sequence[Subject], prefix: str) -> Plot | None:
    """Draw avg@n, pass@n and maj@n over the steps, with bands of 95 %. None where nothing was measured at two steps."""
    samples = subjects[0].entry["scores"].get("samples")
    lines = {name: _points(subjects, name) for name in (f"avg@{samples}", f"pass@{samples}", f"maj@{samples}")}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    figure, axes = make_axes()
    legend, spoken = [], []
    for (name, points), colour in zip(lines.items(), itertools.cycle(SERIES_COLOURS), strict=False):
        steps, values = [step for step, _, _ in points], [value for _, value, _ in points]
        low = [max(0.0, value - NORMAL_95 * error) for _, value, error in points]
        high = [min(100.0, value + NORMAL_95 * error) for _, value, error in points]
        axes.fill_between(steps, low, high, color=COLOURS[colour], alpha=0.18, lw=0)
        axes.plot(steps, values, color=COLOURS[colour], marker="o", markersize=3)
        legend.append((name, colour, "line", f"{number(values[-1])} %"))
        spoken.append(
            f"{name} {number(values[0])} % at step {steps[0]:g}, {number(values[-1])} % at step {steps[-1]:g}"
        )
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    title = "Over the training"
    return Plot(title, "%", to_svg(figure, f"{prefix}-progress"), tuple(legend), f"{title}: {'; '.join(spoken)}")


def _points(subjects: Sequence[Subject], measure: str) -> Points:
    points = []
    for subject in subjects:
        scores = subject.entry["scores"]
        name, _, count = measure.partition("@")
        found = scores.get("pass_at", {}).get(count) if name == "pass" else scores.get(measure)
        if isinstance(found, Mapping) and is_number(found.get("value")):
            points.append((subject.entry["step"], 100 * found["value"], 100 * (found.get("error") or 0.0)))
    return sorted(points)
