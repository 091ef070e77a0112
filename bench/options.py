"""The command line of `python -m bench.kernels`; imports nothing heavy."""

import argparse
import contextlib
import math
from pathlib import Path

from bench.shapes import DTYPES, OP_NAMES, QUICK_SHAPES, SHAPES, Group, Shape

REPEATS = {"cuda": 10, "cpu": 5}
QUICK_REPEATS = 3


def parse_shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels",
        description="Time, memory and error of our ops and of others, against the limit of this machine. "
        "Exit status 1 where an answer of ours is wrong.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    add("--quick", action="store_true", help="one small shape, few repeats, without providers that compile for long")
    add(
        "--shape", type=parse_shape, action="append", metavar="NxDxV", help="rows x width x vocabulary; may be repeated"
    )
    add("--op", choices=OP_NAMES, action="append", help="an op; may be repeated (default: all)")
    add("--dtype", choices=("float32", "bfloat16"), action="append", help="type of the head; may be repeated")
    add("--provider", action="append", metavar="NAME", help="a provider; may be repeated (default: all; see --list)")
    add("--also", action="append", metavar="NAME", help="one more than those: fastflow@2048, blocks of 2048 rows")
    add("--list", action="store_true", help="print the providers and what they do, and end")
    add("--repeats", type=count, help="timed calls of each provider (default: cuda 10, cpu 5, quick 3)")
    add("--group-seconds", type=float, default=60.0, help="end the repeats of a group after this time (default: 60)")
    add("--budget", type=float, metavar="SECONDS", help="after this time in all, start fastflow and gemms only")
    add("--mean-length", type=count, help="mean response length (default: 900, less where N is small)")
    add(
        "--deviation", type=positive, default=1.0, metavar="X",
        help="standard deviation of the logits; above 1, targets are drawn from the head (default: 1, and any target)",
    )  # fmt: skip
    add("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    add("--in-process", action="store_true", help="on CUDA too, measure in this process: easier to debug")
    add("--json", type=Path, metavar="FILE", help="write rows, limits and environment here")
    add("--output", type=Path, metavar="FOLDER", help="write NAME.json, .csv, .md and .png into this folder")
    add("--name", default="kernels", help="stem of the files in --output (default: kernels)")
    return parser


def groups_of(options: argparse.Namespace) -> list[Group]:
    """What is to be measured, the whole loss on every shape first."""
    shapes = options.shape or (QUICK_SHAPES if options.quick else SHAPES)[options.device]
    ops = options.op or OP_NAMES
    dtypes = options.dtype or DTYPES[options.device]
    known = options.device, options.deviation
    return [Group(op, shape, dtype, *known) for op in ops for shape in shapes for dtype in dtypes]


def repeats_of(options: argparse.Namespace) -> int:
    return options.repeats or (QUICK_REPEATS if options.quick else REPEATS[options.device])
