"""Reads what `fastflow sweep` is asked for: base settings, grid and seeds, from the command line and a YAML file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastflow.config import yaml_file
from fastflow.config.parser import CommandParser
from fastflow.config.reader import known_settings
from fastflow.config.resume import HARMLESS, ROUNDING
from fastflow.config.schema import sections
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError
from fastflow.sweep.figure_3 import FIGURE_3
from fastflow.sweep.grid import SEED, VARIANT, Axis, Point, expand, label_of
from fastflow.sweep.runs import Run, read_runs
from fastflow.sweep.study import Study

STUDIES = {"figure-3": FIGURE_3}  # sweeps that come along, by their --preset
OWN_KEYS = ("grid", "seeds", "variants")  # of the YAML file; all others are those of fastflow train
OURS = {  # settings that the sweep decides
    "run.output": "the sweep gives each run a directory of its own; use --output for that of the sweep",
    "run.overwrite": "a sweep goes on with runs that are there; choose another --output for new ones",
}
MOST_JOBS = 1024


@dataclass(frozen=True)
class SweepRequest:
    """What is to be done. metrics: whose curves the page shows; empty for the usual ones. study: where one is named.

    departures: settings of the runs that are not the study's own, each with its value.
    """

    runs: tuple[Run, ...]
    output: Path
    jobs: int
    devices: int
    metrics: tuple[str, ...]
    dry_run: bool
    study: Study | None = None
    departures: tuple[str, ...] = ()

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(run.group for run in self.runs))


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the sweep's own options; settings of the runs are read by that of `fastflow train`."""
    parser = CommandParser(
        prog="fastflow sweep",
        usage="fastflow sweep [--preset NAME] [--config FILE] [--grid SETTING=VALUE,VALUE ...] [--seeds N,N ...]\n"
        "                      [--SECTION.SETTING VALUE ...] [--output DIR] [--jobs N] [--dry-run]",
        description="Train with every combination of some settings, then write one page about all runs. Every setting "
        "of fastflow train may be given; the same command again goes on where a sweep was stopped.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", help=f"starting point of the runs (as for fastflow train), or a study: {', '.join(STUDIES)}")
    add("--config", type=Path, metavar="FILE", help="YAML file of settings; may also hold grid, seeds and variants")
    add("--grid", action="append", default=[], metavar="SETTING=VALUE,VALUE",
        help="values of one setting, such as objective.alpha=1,2,4; may be given several times")  # fmt: skip
    add("--seeds", metavar="N,N", help="short for --grid run.seed=N,N; curves and tables average over seeds")
    add("--output", type=Path, metavar="DIR", help="directory of the sweep (default: runs/sweep)")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at once; they share the cores, or a GPU each (default: 1)",
    )
    add("--devices", type=int, default=1, metavar="N", help="devices of each run, as for fastflow train (default: 1)")
    add("--metrics", default="", metavar="NAME,NAME", help="curves on the page (default: the usual ones)")
    add("--dry-run", action="store_true", help="check everything and list the runs, then exit")
    return parser


def read_request(arguments: Sequence[str]) -> SweepRequest:
    """Read the arguments of `fastflow sweep`, and the settings of every run.

    Raises FastflowError for what the settings' reader refuses in any of the runs, and for a grid that makes none.
    """
    own, options = build_parser().parse_known_args(list(arguments))
    for name, least in (("jobs", own.jobs), ("devices", own.devices)):
        if not 1 <= least <= MOST_JOBS:
            raise FastflowError(f"--{name} is {least}, but must be from 1 to {MOST_JOBS}")
    study = STUDIES.get(own.preset)
    if study is not None and own.config is not None:
        raise FastflowError(
            f"--preset {own.preset} is a whole sweep, and --config names another; leave one of them out"
        )
    if study is not None and own.grid:
        raise FastflowError(
            f"--preset {own.preset} is a whole sweep whose claims are about its own groups, and --grid makes others; "
            "leave one of them out (--seeds may be given)"
        )
    if study is not None:
        tree = {**study.settings, "variants": study.variants, "seeds": list(study.seeds)}
    elif own.config is not None:
        tree = yaml_file.read_sections(own.config, such_as="'optim:' and 'grid:'")  # each run's reader checks the rest
    else:
        tree = {}
    axes = _axes(tree, own)
    base = {name: value for name, value in tree.items() if name not in OWN_KEYS}
    output = own.output or (Path("runs") / ("sweep" if study is None else own.preset))
    given = _given(options)
    if study is not None:
        base |= (made := study.inputs(output))
        for name in given:
            if name in made:
                raise FastflowError(f"--{name}: --preset {own.preset} makes its own ({made[name]}); leave it out")
    elif own.preset is not None:
        options = [f"--preset={own.preset}", *options]
    _check_options(options, axes)
    cells = expand(axes)
    runs = read_runs(cells, base, options, output, own.config)
    metrics = tuple(dict.fromkeys(name.strip() for name in own.metrics.split(",") if name.strip()))
    departures = _departures(given, runs[0], study) if study is not None else ()
    return SweepRequest(runs, output, own.jobs, own.devices, metrics, own.dry_run, study, departures)


def _axes(tree: Mapping[str, Any], own: argparse.Namespace) -> list[Axis]:
    """Collect the axes of the file, then those of the command line. Of seeds, the command line's count."""
    axes = [_variants(tree["variants"])] if tree.get("variants") is not None else []
    grid = tree.get("grid") or {}
    if not isinstance(grid, dict):
        raise FastflowError(f"grid is {grid!r}, but must map settings to lists of values")
    for name, values in _flat(grid).items():
        if not isinstance(values, list):
            raise FastflowError(f"grid: {name} is {values!r}, but must be a list of values, such as [1, 2, 4]")
        axes.append(Axis(name, tuple(Point(label_of(value), {name: value}) for value in values)))
    axes += [_axis(entry) for entry in own.grid]
    if own.seeds is not None:
        axes.append(_axis(f"{SEED}={own.seeds}", "--seeds"))
    elif (seeds := tree.get("seeds")) is not None:
        if not isinstance(seeds, list):
            raise FastflowError(f"seeds is {seeds!r}, but must be a list, such as [0, 1, 2]")
        axes.append(Axis(SEED, tuple(Point(label_of(seed), {SEED: seed}) for seed in seeds)))
    known = known_settings()
    for axis in axes:
        if axis.name in OURS:
            raise FastflowError(f"the grid names {axis.name}, but {OURS[axis.name]}")
        if axis.name != VARIANT and axis.name not in known:
            raise FastflowError(f"the grid names {axis.name}, which is no setting: {suggest(axis.name, known)}")
    return axes


def _axis(entry: str, option: str = "--grid") -> Axis:
    """Read SETTING=VALUE,VALUE; values that hold commas stand in a list, SETTING=[VALUE, VALUE]."""
    name, equals, text = entry.partition("=")
    if not equals:
        raise FastflowError(f"--grid {entry} has no values; write SETTING=VALUE,VALUE, such as objective.alpha=1,2,4")
    values = [part.strip() for part in text.split(",")]
    if text.startswith("["):
        try:
            listed = yaml_file.load(text)
        except ValueError as error:
            raise FastflowError(f"{option} {entry} is not a list of values: {error}") from error
        values = [value if isinstance(value, str) else json.dumps(value, default=str) for value in listed]
    if "" in values:
        raise FastflowError(
            f"{option} {entry} has an empty value; write it as a list, {name}=['', VALUE], or remove it"
        )
    return Axis(name, tuple(Point(value, options=(f"--{name}={value}",)) for value in values))


def _variants(variants: Any) -> Axis:
    """Read named bundles of settings: {name: {setting: value}}."""
    if not isinstance(variants, dict) or not all(isinstance(entry, dict) for entry in variants.values()):
        raise FastflowError("variants must map names to settings, such as {calm: {optim.lr: 1e-6}}")
    return Axis(VARIANT, tuple(Point(label_of(name), _flat(entry)) for name, entry in variants.items()))


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Write the settings of sections by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key in sections() and isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return flat


def _given(options: Sequence[str]) -> list[str]:
    """The names among the words of a command line."""
    return [option[2:].partition("=")[0] for option in options if option.startswith("--")]


def _departures(given: Sequence[str], run: Run, study: Study) -> tuple[str, ...]:
    """Settings that decide what a study's runs compute, where the command line gives another value than the study."""
    decisive = {*known_settings()} - (HARMLESS - {"run.steps"}) - ROUNDING
    changed = []
    for name in dict.fromkeys(given):
        if name in decisive:
            section, entry = name.split(".")
            value = getattr(getattr(run.config, section), entry)
            if name not in study.settings or value != study.settings[name]:
                changed.append(f"{name} = {label_of(value)}")
    return tuple(changed)


def _check_options(options: Sequence[str], axes: Sequence[Axis]) -> None:
    """Refuse options that name what the sweep or its grid decides."""
    varied = {name for axis in axes for point in axis.points for name in (axis.name, *point.settings)}
    for name in _given(options):
        if name in OURS:
            raise FastflowError(f"--{name}: {OURS[name]}")
        if name == "resume":
            raise FastflowError("--resume is for fastflow train; the same fastflow sweep again goes on by itself")
        if name in varied:
            raise FastflowError(f"--{name} is given, and the grid gives it too; leave one of them out")
