"""`fastflow plan`: estimate whether a configuration fits the memory, before any weights are loaded."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.config.parser import CommandParser
from fastflow.errors import FastflowError
from fastflow.run.output_file import writable, write_json
from fastflow.train.ranks.devices import split_devices

if TYPE_CHECKING:
    from rich.console import Console

    from fastflow.config.schema import Config

DOES_NOT_FIT = 1


@dataclass(frozen=True)
class PlanRequest:
    """What to plan. memory: GiB of a device; None means this machine's. json: a file to write, if any. devices: one for
    each rank.
    """

    config: Config
    memory: float | None
    json: Path | None
    devices: int = 1


def read_arguments(arguments: Sequence[str]) -> PlanRequest:
    """Read the arguments of `fastflow train`, and --memory, --devices and --json.

    Raises FastflowError for what is wrong.
    """
    devices, rest = split_devices(arguments)
    own, settings = _own_parser().parse_known_args(rest)
    if "--dry-run" in settings:
        raise FastflowError("--dry-run belongs to fastflow train; fastflow plan never starts a run")
    from fastflow.config.reader import read_config

    config, _ = read_config(settings)
    if not config.model.path:
        raise FastflowError("model.path is not set; give --model.path or choose a --preset (see fastflow train --help)")
    return PlanRequest(config, own.memory, own.json, devices)


def run(request: PlanRequest, console: Console) -> int:
    """Estimate, then print the table and the verdict. Returns 0 when the run fits, otherwise 1.

    Raises FastflowError for a model whose config.json cannot be read, and for settings that do not suit the device.
    """
    from fastflow.plan.device import find_device
    from fastflow.plan.estimate import estimate, sizes_of
    from fastflow.plan.largest import largest
    from fastflow.plan.remedies import combination, remedies
    from fastflow.plan.speed import expected_speed
    from fastflow.plan.table import as_json, print_plan
    from fastflow.train.doubtful import vanishing
    from fastflow.train.ranks.launch import check_replicas, check_several_ranks

    output = None if request.json is None else writable(request.json)
    check_replicas(request.config, request.devices)
    if request.devices > 1:
        check_several_ranks(request.config, request.devices)
    config, device = request.config, find_device(request.config.model, request.memory, request.devices)
    result = estimate(config, device)
    sizes = sizes_of(config)
    most, speed = largest(config, sizes, device), expected_speed(config, sizes, device)
    result.remarks.extend(str(found) for found in (most, speed) if found is not None)
    result.remarks.extend(vanishing(config))
    helpful = [] if result.fits else remedies(config, device, result)
    together = [] if result.fits or any(remedy.fits for remedy in helpful) else combination(config, device, result)
    print_plan(console, config, result, helpful, together)
    if output is not None:
        write_json(output, as_json(config, result, helpful, together, most, speed))
    return 0 if result.fits else DOES_NOT_FIT


def _gibibytes(text: str) -> float:
    """Read 79.6, 79.6GiB or 80GB as GiB."""
    number, unit = re.fullmatch(r"(.*?)\s*(gib|gb|)", text.strip(), re.IGNORECASE).groups()  # type: ignore[union-attr]
    try:
        return float(number) * (1e9 / 2**30 if unit.lower() == "gb" else 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write GiB as a number, such as 79.6, or 80GB") from None


def _own_parser() -> CommandParser:
    parser = CommandParser(
        prog="fastflow plan",
        usage="fastflow plan [--preset NAME] [--config FILE] [--SECTION.SETTING VALUE ...] [--memory GIB] "
        "[--devices N] [--json FILE]",
        description="Estimate the memory of a training run from its settings and the model's config.json, and say "
        "whether it fits. Takes every setting of fastflow train (see fastflow train --help); loads no weights and "
        "needs no data.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--memory",
        metavar="GIB",
        type=_gibibytes,
        help="memory of the GPU to plan for, of each where there are several, in this machine or in another, in GiB or "
        "as 80GB; with --model.device cpu, the RAM (default: this machine's)",
    )
    parser.add_argument("--devices", metavar="N", help="ranks, with a device each (default: 1); the plan is of one")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the plan as JSON, in bytes")
    return parser
