"""`fastflow verify`: checks the trainer against exact answers, on models small enough to enumerate every response.

It begins with gradients, compared with float64 autograd and with other micro-batch sizes, and with the sampler's
log-probs. It trains a table under the exact expectation, where only objective and op can be wrong, and a transformer on
its own samples, with the sampler and the Learner of `fastflow train`. It compares both with the exact target.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.run.logs import open_console
from fastflow.run.output_file import writable, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from fastflow.verify.checks import Check

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastflow verify`."""
    parser.add_argument("--json", metavar="FILE", help="also write the checks as JSON")
    parser.add_argument("--seed", type=int, default=0, help="seed of models, batches and samples (default: 0)")
    parser.add_argument("--quick", action="store_true", help="use smaller models and fewer updates; same bounds")


def run(arguments: argparse.Namespace) -> int:
    """Run every check and print the table. Returns 0; 1 where a value exceeds its bound."""
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from fastflow.verify.checks import QUICK, Size, run_checks
    from fastflow.verify.power_sampling import SCOPE

    console = open_console()
    output = None if arguments.json is None else writable(Path(arguments.json))
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)  # such small matrices gain nothing from more cores
    try:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        bars = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        with torch.random.fork_rng(devices=[]), bars as progress:
            size = QUICK if arguments.quick else Size()
            task = progress.add_task("gradients", total=size.total_updates())
            checks = run_checks(
                size,
                arguments.seed,
                on_phase=lambda name: progress.update(task, description=name),
                on_update=lambda: progress.advance(task),
            )
    finally:
        torch.set_num_threads(threads)
    seconds, passed = time.perf_counter() - start, all(check.passed for check in checks)
    console.print(_table_of(checks))
    console.print(SCOPE)
    console.print(f"{'all checks passed' if passed else 'some checks FAILED'} in {seconds:.0f} s")
    if output is not None:
        lines = [asdict(check) | {"passed": check.passed} for check in checks]
        write_json(output, {"checks": lines, "scope": SCOPE, "passed": passed, "seconds": seconds})
    return 0 if passed else FAILED


def _table_of(checks: list[Check]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("check", "value", "bound", "unit", "against", ""):
        table.add_column(heading, no_wrap=True)
    for check in checks:
        verdict = "[green]pass" if check.passed else "[bold red]FAIL"
        table.add_row(check.name, f"{check.value:.1e}", f"{check.bound:g}", check.unit, check.note, verdict)
    return table
