"""Prints the demo's comparison of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastflow.demo.tasks import DemoTask

_ROWS = (
    ("accuracy", "accuracy", "share"),
    ("greedy_accuracy", "greedy accuracy", "share"),
    ("boxed_share", "boxed", "share"),
    ("valid_share", "valid", "share"),
    ("distinct_share", "distinct of 16", "share"),
    ("mean_length", "tokens", "number"),
    ("truncated_share", "cut off", "share"),
    ("sequence_entropy", "nats per response", "number"),
    ("token_entropy", "nats per token", "number"),
)


def print_comparison(results: dict[str, Any], tasks: Sequence[DemoTask], console: Console) -> None:
    """Print a table for each task: base, base at token-wise temperature 1 / alpha, and policy (others at T = 1)."""
    for task in tasks:
        base, control, policy = (results[label] for label in task.labels)
        table = Table(title=task.title, title_justify="left")
        for heading in ("", "base", f"base, T = {1 / task.alpha:g}", f"PowerFlow, alpha {task.alpha:g}"):
            table.add_column(heading, justify="left" if not heading else "right")
        for key, label, kind in _ROWS:
            if key in base:
                table.add_row(label, *(_cell(model.get(key), kind) for model in (base, control, policy)))
        for k in base.get("pass_at", {}):
            table.add_row(f"pass@{k}", *(_cell(model["pass_at"][k], "share") for model in (base, control, policy)))
        console.print(table)


def _cell(value: float | None, kind: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if kind == "share" else f"{value:.2f}"
