"""`fastflow replay`: compute the batch of a skipped update again, and say which of its numbers are not finite."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastflow.run.console import say
from fastflow.run.logs import open_console
from fastflow.run.output_file import writable, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from fastflow.replay.recompute import Replay

MOST_ROWS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastflow replay`."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a batch that a run has kept: RUN/bad/step-N.safetensors"
    )
    parser.add_argument("--run", metavar="RUN", type=Path, dest="directory", help="the run (default: that of FILE)")
    parser.add_argument(
        "--model", metavar="DIR", help="the policy's weights (default: the save of that moment, otherwise the newest)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the run's)")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write what is found as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Replay and print. Returns 0 where all numbers are finite now, and 1 where some are not, as in the run.

    Raises FastflowError for a file, a run or weights that cannot be read.
    """
    console = open_console()
    if arguments.json is not None:
        writable(arguments.json)
    from fastflow.replay.recompute import replay

    found = replay(arguments.file, run=arguments.directory, model=arguments.model, device=arguments.device)
    show(found, console)
    if arguments.json is not None:
        write_json(arguments.json, content(found))
    return 0 if found.finite else 1


def show(found: Replay, console: Console) -> None:
    """Print tables of what is not finite, and what to do."""
    about, then, now = found.batch.about, found.batch.result, found.now
    say(console, f"step {about['step']}, update {about['update']} of {about['of']}: {then.skipped}")
    say(console, f"computed again with the weights {found.weights}")
    for note in found.notes:
        say(console, f"note: {note}")
    table = _table("", "in the run", "now")
    for name, values in (("loss", (then.loss, now.loss)), ("gradient norm", (then.grad_norm, now.grad_norm))):
        table.add_row(name, *(f"{value:.6g}" for value in values))
    console.print(table)
    if found.responses:
        table = _table("prompt", "response", "tokens", "what is not finite")
        for row in found.responses[:MOST_ROWS]:
            table.add_row(str(row.prompt), str(row.response), str(row.tokens), "; ".join(row.values))
        console.print(table)
        _left_out(console, len(found.responses), "responses")
    if found.gradients:
        table = _table("gradient of", "not finite", "entries")
        for entry in found.gradients[:MOST_ROWS]:
            table.add_row(entry.name, f"{entry.bad:,}", f"{entry.entries:,}")
        console.print(table)
        _left_out(console, len(found.gradients), "tensors")
    say(console, advice(found))


def advice(found: Replay) -> str:
    """Say in a sentence where the numbers go bad first, and what to do about it."""
    if found.finite:
        return (
            "All numbers are finite now. If the weights are not those of the skipped update, they are what differs: "
            "set run.save_every lower. If they are, the device or a library did not compute the same twice."
        )
    words = " ".join(value for row in found.responses for value in row.values)
    for sign, meaning in (
        ("log p_base", "The base finds no finite log-prob: check model.base for damaged weights, and model.dtype."),
        ("sampler's", "The sampler gave no finite log-prob: set importance.source = recompute, or check the engine."),
        ("penalty is", "The penalty is not finite: check objective.format_penalty."),
        ("reward is", "The reward is not finite: check objective.reward for what it returns on these responses."),
        ("log pi is", "The policy finds no finite log-prob: its weights are too large. Lower optim.lr, and go on from "
                      "an earlier save."),
        ("log_z is", "log_z is not finite: lower optim.log_z_lr, or set objective.log_z = group_mean."),
        ("overflows", "A residual is too large to be squared: check objective.alpha, objective.format_penalty and the "
                      "reward; with a learned log_z, lower optim.log_z_lr."),
    ):  # fmt: skip
        if sign in words:
            return meaning
    if math.isfinite(found.now.loss):
        return (
            "The loss is finite and its gradient is not: the backward pass overflows. Set model.dtype = float32 and "
            "model.autocast = false to see whether it is the number format; lower optim.lr."
        )
    return "No response stands out, but the loss of all is not finite: lower optim.lr, or check objective.alpha."


def content(found: Replay) -> dict[str, Any]:
    """Everything that is shown, for JSON; numbers that JSON does not know are texts such as "nan"."""
    return {
        "finite": found.finite,
        **{name: found.batch.about[name] for name in ("step", "update", "of", "updates")},
        "then": _numbers(found.batch.result.loss, found.batch.result.grad_norm, found.batch.result.skipped),
        "now": _numbers(found.now.loss, found.now.grad_norm, found.now.skipped),
        "weights": found.weights,
        "notes": found.notes,
        "responses": [asdict(row) for row in found.responses],
        "gradients": [asdict(entry) for entry in found.gradients],
        "advice": advice(found),
    }


def _numbers(loss: float, norm: float, problem: str) -> dict[str, Any]:
    known = {"loss": loss, "grad_norm": norm}
    return {
        "problem": problem,
        **{name: value if math.isfinite(value) else str(value) for name, value in known.items()},
    }


def _table(*headings: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading)
    return table


def _left_out(console: Console, count: int, what: str) -> None:
    if count > MOST_ROWS:
        say(console, f"and {count - MOST_ROWS:,} more {what}")
