"""Describes a run in words and figures: facts, alarms, the table of before and after, pass@k, settings."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

from fastflow.config.schema import sections
from fastflow.counted import counted, sized
from fastflow.drawing.numbers import is_number, number, places
from fastflow.report.coverage import Curve
from fastflow.report.files import RunFiles
from fastflow.report.text import printable
from fastflow.run.pace import in_words

HIGHER_IS_BETTER = (
    *("reward_mean", "accuracy", "greedy_accuracy", "pass_at", "boxed_share", "valid_share", "distinct_share"),
)
LOWER_IS_BETTER = ("truncated_share", "malformed_share", "repetition")
LABELS = {  # metric -> words and unit; other metrics keep their own name
    "accuracy": ("Accuracy, sampled", "%"),
    "greedy_accuracy": ("Accuracy, greedy", "%"),
    "boxed_share": ("Answer in a box", "%"),
    "valid_share": ("Valid responses", "%"),
    "distinct_share": ("Distinct responses", "%"),
    "truncated_share": ("Cut at the length limit", "%"),
    "malformed_share": ("Malformed", "%"),
    "repetition": ("Repeated 4-grams", "%"),
    "mean_length": ("Mean length", "tokens"),
    "length_mean": ("Mean length", "tokens"),
    "token_entropy": ("Entropy per token", "nats"),
    "sequence_entropy": ("Entropy per response", "nats"),
    "logprob_mean": ("Mean log π", "nats per token"),
    "base_logprob_mean": ("Mean log p_base", "nats per token"),
    "reward_mean": ("Reward", "mean"),
    "slope": ("Slope of log π on log p_base", ""),
}
TRAINING_METRICS = (  # the before/after table of a run without an evaluation
    *("reward_mean", "slope", "logprob_mean", "base_logprob_mean", "token_entropy", "sequence_entropy"),
    *("length_mean", "truncated_share", "malformed_share", "repetition"),
)


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """Return what stands under the heading: (name, value)."""
    last, column = files.steps[-1], functools.partial(_column, files.steps)
    shown = {"Model": files.config.get("model", {}).get("path"), "Steps": _steps(files)}
    if is_number(last.get("slope")) and is_number(last.get("alpha")):
        shown["Slope, last step"] = f"{number(last['slope'])} of {number(last['alpha'])}"
    shown |= {name.capitalize(): number(sum(column(name))) for name in ("responses", "tokens") if column(name)}
    if column("seconds"):
        shown["Time"] = in_words(sum(column("seconds")))
    if column("peak_memory_bytes"):
        shown["Peak memory"] = sized(max(column("peak_memory_bytes")))
    return [(name, printable(str(value))) for name, value in shown.items() if value]


def _steps(files: RunFiles) -> str:
    """The newest step, and of how many where a run has not come to its end."""
    wanted, at = files.config.get("run", {}).get("steps"), files.steps[-1]["step"]
    return f"{at} of {wanted}" if is_number(wanted) and at < wanted else str(at)


def _column(steps: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in steps if is_number(record.get(name))]


def alarms(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (steps, latest text) of each kind of alarm. Alarms that differ only in figures are one kind."""
    kinds: dict[str, tuple[list[int], str]] = {}
    for record in steps:
        for text in record.get("alarms") or []:
            kind = re.sub(r"\d[\d.,]*", "#", str(text))
            kinds[kind] = ([*kinds.get(kind, ([], ""))[0], record["step"]], str(text))
    return [(f"Step{'s'[: len(at) - 1]} {', '.join(map(str, at))}", printable(text)) for at, text in kinds.values()]


def evaluation_table(evaluation: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Make rows of metrics and columns of models. A cell is (value, change from the first, whether it is best)."""
    flat = {model: _flatten(metrics) for model, metrics in evaluation.items()}
    names = dict.fromkeys(name for metrics in flat.values() for name in metrics)
    rows = [_metric_row(name, [metrics.get(name) for metrics in flat.values()]) for name in names]
    return {"title": "Before and after", "columns": [_model_name(model) for model in flat], "rows": rows,
            "note": "Small figures: change from the first column. Bold: best."}  # fmt: skip


def training_table(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the same table as evaluation_table, from the first and last few steps."""
    count = max(1, min(5, len(steps) // 2))
    rows = []
    for name in TRAINING_METRICS:
        ends = [_column(part, name) for part in (steps[:count], steps[-count:])]
        means = [sum(values) / len(values) if values else None for values in ends]
        if any(mean is not None for mean in means):
            label, unit, cells = _metric_row(name, means)
            targets = _column(steps, "alpha") if name == "slope" else []
            rows.append((label, f"target: {number(targets[-1])}" if targets else unit, cells))
    some = f"{count} steps" if count > 1 else "step"
    note = f"Measured on training prompts; {counted(len(steps), 'step')} in all. Small figures: change. Bold: better."
    return {"title": "First and last steps", "columns": [f"First {some}", f"Last {some}"], "rows": rows, "note": note}


def _flatten(metrics: dict[str, Any]) -> dict[str, Any]:
    """Turn a table within the metrics, such as pass_at, into entries such as pass_at@1."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        flat |= {f"{name}@{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _metric_row(name: str, values: list[Any]) -> tuple[str, str, list[tuple[str, str, bool]]]:
    """Make (label, unit, cells as in evaluation_table) of one metric. values: one for each column."""
    key = name.split("@")[0]
    label, unit = LABELS.get(key, (key.replace("_", " ").capitalize(), "%" if key.endswith("_share") else ""))
    if key == "pass_at":
        label, unit = name.replace("pass_at", "pass"), "%"
    known = [value for value in values if is_number(value)]
    best = max(known) if key in HIGHER_IS_BETTER and known else min(known) if key in LOWER_IS_BETTER and known else None
    best = None if len(set(known)) < 2 else best
    scale, digits = (100, 1) if unit == "%" else (1, min(max([2, *(places(value, 2) for value in known)]), 4))
    cells = []
    for at, value in enumerate(values):
        if not is_number(value):
            cells.append(("–" if value is None else printable(str(value)), "", False))  # noqa: RUF001
            continue
        change = scale * (value - values[0]) if at and is_number(values[0]) else None
        shown = [f"{scale * value:.{digits}f}", "" if change is None else f"{change:+.{digits}f}"]
        cells.append((*(text.replace("-", "−") for text in shown), value == best))  # noqa: RUF001
    return printable(label), unit, cells


def _model_name(name: str) -> str:
    if match := re.search(r"alpha_([\d.]+)$", name):
        return f"PowerFlow, alpha {match[1]}"
    if match := re.search(r"(low|high)_temperature$", name):
        return f"Base, {match[1]} temperature"
    return "Base model" if name.endswith("base") else printable(name.replace("_", " "))


def pass_at_curves(evaluation: dict[str, dict[str, Any]]) -> dict[str, Curve]:
    """Return the curve of each model with several k, without errors."""
    curves: dict[str, Curve] = {}
    for model, metrics in evaluation.items():
        found = metrics.get("pass_at")
        if not isinstance(found, dict):
            continue
        curve = {int(k): (float(value), 0.0) for k, value in found.items() if str(k).isdigit() and is_number(value)}
        curves |= {_model_name(model): curve} if len(curve) > 1 else {}
    return curves


def settings(config: dict[str, dict[str, Any]]) -> list[tuple[str, list[tuple[str, str, bool, str]]]]:
    """Return (section, [(name, value, whether it differs from the default, help)]) for each section."""
    known = {(name, entry.name): entry for name, section in sections().items() for entry in dataclasses.fields(section)}
    words = {"None": "none", "": "–", "True": "yes", "False": "no"}  # noqa: RUF001
    shown = []
    for section, values in config.items():
        rows = []
        for name, value in values.items():
            entry = known.get((section, name))
            plain = tuple(value) if isinstance(value, list) else value
            text = ", ".join(map(str, value)) if isinstance(value, list) else words.get(str(value), str(value))
            changed = entry is not None and plain != entry.default
            rows.append((printable(str(name)), printable(text), changed, entry.metadata["help"] if entry else ""))
        shown.append((printable(str(section)), rows))
    return shown
