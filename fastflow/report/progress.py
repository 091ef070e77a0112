"""What a run's evaluations came to, over the steps of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastflow.drawing.figure import make_axes, to_svg
from fastflow.drawing.lines import Line, draw_lines
from fastflow.drawing.numbers import is_number
from fastflow.drawing.plot import Plot, solid
from fastflow.evaluate.estimates import NORMAL_95
from fastflow.report.evaluations import Subject
from fastflow.run.evaluated import REWARD

Points = list[tuple[float, float, float]]  # step, value and standard error, shares in percent


def progress_plot(subjects: Sequence[Subject], prefix: str) -> Plot | None:
    """Draw avg@n, pass@n and maj@n, otherwise the reward, over the steps, with bands of 95 %. None where nothing was
    measured at two steps.
    """
    first = subjects[0].entry["scores"]
    samples, rewarded = first.get("samples"), REWARD in first
    names = (REWARD,) if rewarded else (f"avg@{samples}", f"pass@{samples}", f"maj@{samples}")
    scale, unit, lowest, highest = (1, "", -math.inf, math.inf) if rewarded else (100, "%", 0.0, 100.0)
    known = {name: _points(subjects, name, scale) for name in names}
    known = {name: points for name, points in known.items() if len(points) > 1}
    if not known:
        return None
    lines = []
    for place, (name, points) in enumerate(known.items()):
        steps, values, errors = zip(*points, strict=True)
        halves = [NORMAL_95 * error for error in errors]
        lines.append(Line.around(name, solid(place), steps, values, halves, marker=3.0, lowest=lowest, highest=highest))
    figure, axes = make_axes()
    legend, spoken = draw_lines(axes, lines, x_name="step ", unit=f" {unit}".rstrip())
    axes.set_xlabel("step")
    if not rewarded:
        axes.set_ylim(bottom=0)
    title = "Over the training"
    return Plot(title, unit, to_svg(figure, f"{prefix}-progress"), legend, f"{title}: {spoken}")


def _points(subjects: Sequence[Subject], measure: str, scale: float) -> Points:
    points = []
    for subject in subjects:
        scores = subject.entry["scores"]
        name, _, count = measure.partition("@")
        found = scores.get("pass_at", {}).get(count) if name == "pass" else scores.get(measure)
        if isinstance(found, Mapping) and is_number(found.get("value")):
            points.append((subject.entry["step"], scale * found["value"], scale * (found.get("error") or 0.0)))
    return sorted(points)
