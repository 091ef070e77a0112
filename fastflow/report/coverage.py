"""pass@k of base and policy over k: the curves with their bands, and in words whether and where they cross."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fastflow.drawing.figure import make_axes, to_svg
from fastflow.drawing.lines import Line, draw_lines
from fastflow.drawing.numbers import is_number, number
from fastflow.drawing.plot import Plot, solid
from fastflow.evaluate.estimates import NORMAL_95
from fastflow.report.evaluations import Subject
from fastflow.report.paired import Difference, paired, pass_at_of

MOST_DRAWN = 64  # k of a curve, closer together where k is small
_EQUAL = 1e-9  # shares nearer than this differ by rounding alone
Curve = dict[int, tuple[float, float]]  # k -> share of prompts solved, its standard error

CAPTION = "Band: 95 % over prompts."


def curve_of(subject: Subject) -> Curve:
    """pass@k of a model; {} where it was not measured at two k."""
    found = subject.entry["scores"].get("pass_at")
    entries = found.items() if isinstance(found, Mapping) else ()
    curve = {
        int(k): (float(entry["value"]), float(entry.get("error") or 0.0))
        for k, entry in entries
        if str(k).isdigit() and isinstance(entry, Mapping) and is_number(entry.get("value"))
    }
    return dict(sorted(curve.items())) if len(curve) > 1 else {}


def coverage_plot(subjects: Sequence[Subject], prefix: str) -> Plot | None:
    """Draw pass@k of models of an evaluation. None without a curve."""
    curves = {subject.name: curve for subject in subjects if (curve := curve_of(subject))}
    return pass_at_plot(curves, f"{prefix}-coverage") if curves else None


def pass_at_plot(curves: Mapping[str, Curve], prefix: str) -> Plot:
    """Draw pass@k of each model over k, on a logarithmic axis, with a band where errors are known."""
    lines = []
    for place, (name, curve) in enumerate(curves.items()):
        ks = drawn_ks(sorted(curve))
        values, halves = [100 * curve[k][0] for k in ks], [100 * NORMAL_95 * curve[k][1] for k in ks]
        marker = 3.5 if len(ks) <= 16 else 0.0
        lines.append(Line.around(name, solid(place), ks, values, halves, marker=marker, lowest=0.0, highest=100.0))
    figure, axes = make_axes()
    legend, spoken = draw_lines(axes, lines, x_name="k = ", unit=" %")
    ticks = [2**power for power in range(max(map(max, curves.values())).bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("k, attempts")
    axes.set_ylim(bottom=0)
    title = "Solved within k attempts"
    caption = f" {CAPTION}" if any(error for curve in curves.values() for _, error in curve.values()) else ""
    description = f"{title}, pass@k: {spoken}.{caption}"
    return Plot(title, "pass@k, %", to_svg(figure, prefix), legend, description)


def drawn_ks(ks: Sequence[int]) -> list[int]:
    """At most MOST_DRAWN of the k, evenly spread on a logarithmic axis; the first and the last are among them."""
    if len(ks) <= MOST_DRAWN:
        return list(ks)
    low, high = ks[0], ks[-1]
    wanted = [low * (high / low) ** (at / (MOST_DRAWN - 1)) for at in range(MOST_DRAWN)]
    return sorted({min(ks, key=lambda k: abs(k - target)) for target in wanted})


def coverage_words(subjects: Sequence[Subject]) -> list[str]:
    """Say of each model but the first whether it solves more than the first, and from which k on it does not."""
    first, *others = subjects
    told = []
    for other in others:
        ours, theirs = curve_of(other), curve_of(first)
        ks = sorted(ours.keys() & theirs.keys())
        if len(ks) > 1:
            gaps = [ours[k][0] - theirs[k][0] for k in ks]
            told.append(compare_words(other.name, first.name, ks, gaps, _at_last(other, first, ks[-1])))
    return told


def compare_words(name: str, base: str, ks: Sequence[int], gaps: Sequence[float], last: Difference | None) -> str:
    """One or two sentences about two curves. gaps: share solved by `name` less that of `base`, for each k.

    last: the paired difference at the largest k; None where the responses are not there.
    """
    signs = [0 if abs(gap) < _EQUAL else 1 if gap > 0 else -1 for gap in gaps]
    leads = [(k, sign) for k, sign in zip(ks, signs, strict=True) if sign]
    largest = ks[-1]
    if not leads:
        return f"{name} and {base} solve equally much at every k from {ks[0]} to {largest}."
    crossings = [(k, after, to) for (k, sign), (after, to) in itertools.pairwise(leads) if sign != to]
    interval = "" if last is None or last.low is None else f" ({_interval(last)})"
    points = f"{number(abs(100 * gaps[-1]))} points"
    if not crossings:
        ahead = name if leads[0][1] > 0 else base
        ties = "" if len(leads) == len(ks) else ", or equally much,"
        words = (
            f"The curves do not cross: {ahead} solves more{ties} at every k. Its lead is "
            f"{number(abs(100 * gaps[0]))} points at k = {ks[0]} and {points} at k = {largest}{interval}."
        )
    else:
        where = ", ".join(f"between k = {k} and k = {after}" for k, after, _ in crossings)
        winner = name if crossings[-1][2] > 0 else base
        times = "" if len(crossings) == 1 else f" {len(crossings)} times,"
        words = f"The curves cross{times} {where}; from k = {crossings[-1][1]} on, {winner} solves more"
        words += f", at k = {largest} by {points}{interval}." if signs[-1] else f", but not at k = {largest}."
    return f"{words} {_verdict(name, base, largest, last)}".strip()


def _verdict(name: str, base: str, largest: int, last: Difference | None) -> str:
    """What the interval at the largest k says about the coverage."""
    if last is None or last.low is None:
        return ""
    if not last.leaves_out_zero:
        return (
            f"The interval at k = {largest} holds 0: neither a loss nor a gain of coverage is shown with these prompts."
        )
    if last.value < 0:
        return f"The interval leaves out 0: {name} lost coverage against {base}."
    return f"The interval leaves out 0: {name} lost no coverage at k = {largest}."


def _interval(difference: Difference) -> str:
    """The interval of the lead, whoever leads."""
    low, high = (100 * (bound or 0.0) for bound in (difference.low, difference.high))
    low, high = (low, high) if difference.value >= 0 else (-high, -low)
    return f"95 %: {number(low)} to {number(high)}"


def _at_last(subject: Subject, first: Subject, k: int) -> Difference | None:
    if not subject.rows or not first.rows:
        return None
    counts: dict[Any, int] = {}
    for which, rows in enumerate((subject.rows, first.rows)):
        for row in rows:
            counts[which, row["question"]] = counts.get((which, row["question"]), 0) + 1
    if min(counts.values()) < k:
        return None
    return paired(subject.rows, first.rows, pass_at_of(k))
