"""Show a plan as a table, as sentences and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.plan.estimate import MemoryEstimate
from fastflow.plan.largest import Largest
from fastflow.plan.remedies import Remedy
from fastflow.plan.rows import PHASES, SAMPLING, Row
from fastflow.plan.speed import Speed

NARROW = 0.03  # of a GPU's memory: what is left below it is within the estimate's error
CAVEAT = (
    "An estimate from formulas, with every response at full length. Numbers in brackets do not exist at the moment of "
    "their phase's peak."
)


def print_plan(
    console: Console, config: Config, result: MemoryEstimate, helpful: list[Remedy], together: list[Remedy]
) -> None:
    """Print the table, the verdict, and what to change."""
    console.print(_table(result))
    for phase in PHASES:
        console.print(f"while {_name(config, phase)}: the peak is at {_moment(result, phase)}", highlight=False)
    for remark in (*result.remarks, CAVEAT):
        console.print(escape(remark), highlight=False)
    console.print(verdict(config, result), highlight=False, style="green" if result.fits else "bold red")
    for obstacle in result.obstacles:
        console.print(escape(obstacle), highlight=False)
    for remedy in helpful:
        console.print(f"  {escape(remedy.option)}  {_savings(remedy)}", highlight=False)
    if together:
        options = " ".join(remedy.option for remedy in together)
        outcome = (
            "none is enough alone; together these fit" if together[-1].fits else "together these are not enough either"
        )
        console.print(f"{outcome}: {escape(options)}", highlight=False, soft_wrap=True)
    elif result.shortfall and not helpful:  # an obstacle has its own remedy
        console.print("no single setting helps: choose a smaller model or a device with more memory", highlight=False)


def verdict(config: Config, result: MemoryEstimate) -> str:
    """Say in one sentence whether the run fits, in which memory, and how much is left or missing."""
    device = result.device
    phase = max(PHASES, key=lambda name: result.peak(name)[1])
    _, needed = result.peak(phase)
    each = f", each of {device.count} ranks" if device.count > 1 else ""
    where = f"{sized(device.memory)} ({device.origin}{each})"
    if result.shortfall:
        more = sized(result.shortfall)
        return f"does not fit: {sized(needed)} while {_name(config, phase)}, {more} more than {where}"
    if result.obstacles:
        return f"does not fit, although the peak of {sized(needed)} is within {where}"
    left = device.memory - needed
    word = "fits" if device.is_gpu or left >= needed else "fits if malloc gives back what is freed"
    if device.is_gpu and left < NARROW * device.memory:
        word = "fits barely, where fragments and other processes leave room"
    return f"{word}: {sized(needed)} while {_name(config, phase)}, of {where}; {sized(left)} are left"


def as_json(
    config: Config,
    result: MemoryEstimate,
    helpful: list[Remedy],
    together: list[Remedy],
    most: Largest | None,
    speed: Speed | None,
) -> dict[str, Any]:
    """Return all that the console shows, in bytes."""
    phases = {}
    for phase in PHASES:
        moment, held = result.peak(phase)
        phases[phase] = {"bytes": held, "moment": moment, "excess": result.excess(phase)}
    return {
        "model": config.model.path,
        "device": asdict(result.device),
        "rows": [asdict(row) for row in result.rows],
        "phases": phases,
        "fits": result.fits,
        "shortfall": result.shortfall,
        "obstacles": result.obstacles,
        "remarks": result.remarks,
        "remedies": [asdict(remedy) for remedy in helpful],
        "together": [asdict(remedy) for remedy in together],
        "largest": None if most is None else asdict(most),
        "speed": None if speed is None else asdict(speed),
        "measured": False,
    }


def _table(result: MemoryEstimate) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("memory", min_width=20)
    for phase in PHASES:
        table.add_column(phase, justify="right", no_wrap=True)
    table.add_column("how", style="dim", overflow="fold")
    for side in ("trainer", "vllm", "host"):
        rows = [row for row in result.rows if row.side == side]
        if not rows:
            continue
        table.add_row(f"[bold]{side if side != 'vllm' else 'vLLM'}")
        for row in rows:
            table.add_row(escape(row.name), *(_cell(row, result, phase) for phase in PHASES), escape(row.how))
    peaks = [sized(result.peak(phase)[1]) for phase in PHASES]
    table.add_row("[bold]peak", *(f"[bold]{peak}" for peak in peaks), f"of {sized(result.device.memory)}")
    return table


def _cell(row: Row, result: MemoryEstimate, phase: str) -> str:
    if result.peak(phase)[0] in row.moments:
        return sized(row.bytes)
    return f"[dim]({sized(row.bytes)})" if set(row.moments) & set(PHASES[phase]) else "-"


def _moment(result: MemoryEstimate, phase: str) -> str:
    moment, _ = result.peak(phase)
    return "full length of all responses" if moment == SAMPLING else moment


def _name(config: Config, phase: str) -> str:
    return "training and sampling ahead" if phase == "training" and config.rollout.ahead else phase


def _savings(remedy: Remedy) -> str:
    saved = [f"{sized(saved)} while {phase}" for phase, saved in remedy.saves.items() if saved > 0]
    text = f"saves {' and '.join(saved)}" if saved else "lets vLLM start"
    return text + (", and then it fits" if remedy.fits else ", which is not enough alone")
