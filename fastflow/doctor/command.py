"""`fastflow doctor`: check what is installed, what of it works, and what to do about the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastflow.errors import FastflowError, message_of
from fastflow.run.output_file import writable, write_json

SICK = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastflow doctor`."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the checks as JSON")
    parser.add_argument(
        "--report", action="store_true", help="print a text for a bug report instead, without private paths and names"
    )
    parser.add_argument(
        "--vllm", action="store_true", help="also start vLLM on a tiny model and compare its log-probs (about a minute)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run every check and print the table. Returns 1 where something is broken, or required and missing; otherwise 0.

    Raises FastflowError where even the table cannot be printed.
    """
    try:
        from rich.console import Console
    except Exception as error:  # rich prints the table, and may itself be broken
        reason = message_of(error, typed=True)
        raise FastflowError(f"rich does not load ({reason}); pip install --force-reinstall rich") from error

    from fastflow.doctor.examination import examine
    from fastflow.doctor.table import as_json, print_checks, progress_line

    output = None if arguments.json is None else writable(arguments.json)
    console = Console()
    with progress_line() as say:
        checks = examine(on_check=say, start_vllm=arguments.vllm)
    if arguments.report:
        from fastflow.doctor.report import as_report

        print(as_report(checks))
    else:
        print_checks(console, checks)
    if output is not None:
        write_json(output, as_json(checks))
    return SICK if any(check.is_fault for check in checks) else 0
