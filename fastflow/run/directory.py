"""The files of a run: made at its start, and never mixed with those of an earlier one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fastflow.config.reader import SETTINGS_FILE, to_yaml
from fastflow.config.schema import Config
from fastflow.errors import FastflowError
from fastflow.run.checkpoints import CHECKPOINTS, SHOWN, remove
from fastflow.run.durable import FRESH, replace_text
from fastflow.run.lock import HOLDER_FILE, LOCK_FILE
from fastflow.run.output_file import writing

logger = logging.getLogger(__name__)

CONFIG_FILE = SETTINGS_FILE
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
EVALUATION_FILE = "evaluation.json"
EVALUATIONS = "evaluations"  # of the policy during training
REPORT_FILE = "report.html"
SAMPLES = "samples"
GROWING = (METRICS_FILE, SAMPLES_FILE)  # a line or more a step
EARLIER_STATE = "trainer"  # of runs that could not be resumed yet
WANDB_FILE = "wandb.id"
STATUS_FILE = "status.json"
STACKS = "stacks"  # of all ranks, where one hung
RESCUED = "rescued"  # what a run could not save in another way
BAD = "bad"  # batches whose update was skipped
REHEARSAL = "save.rehearsal"
WANDB_LOGS = "wandb"  # Weights & Biases' own
_OURS = (
    METRICS_FILE, SAMPLES_FILE, EVALUATION_FILE, EVALUATIONS, REPORT_FILE,
    SAMPLES, "tensorboard", WANDB_FILE, STATUS_FILE, STACKS, BAD, *SHOWN, EARLIER_STATE, RESCUED,
    CHECKPOINTS, CONFIG_FILE,
)  # fmt: skip
_SAMPLES_NAME = re.compile(r"step-(\d+)\.txt")
_BAD_NAME = re.compile(r"step-(\d+)(?:-update-(\d+))?\.safetensors")
_PASSING = {
    LOCK_FILE,
    HOLDER_FILE,
    REHEARSAL,
    f"{CONFIG_FILE}{FRESH}",
    STACKS,
    WANDB_LOGS,
}  # what a run that was killed before its first step leaves


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds a run, unless it may be overwritten, and one that holds anything else."""
    check_directory(directory)
    if not directory.exists():
        return
    holds_run = (directory / CONFIG_FILE).exists()
    if holds_run and not overwrite:
        raise FastflowError(
            f"{directory} already holds a run; choose another --run.output, --resume {directory} to go on with it, or "
            "--run.overwrite true to replace it"
        )
    if not holds_run and any(entry.name not in _PASSING for entry in directory.iterdir()):
        raise FastflowError(f"{directory} is not empty and not a run of fastflow; choose another --run.output")


def check_directory(directory: Path) -> None:
    """Raise FastflowError for a path that can be no directory: it is a file, or lies below one."""
    there = next((place for place in (directory, *directory.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        below = "" if there == directory else f" lies below {there}, which"
        raise FastflowError(f"run.output = {directory}{below} is a file; choose a directory")


def check_inputs_survive(directory: Path, config: Config) -> None:
    """Refuse to overwrite a run that holds this run's own model or data."""
    for name, value in (
        ("model.path", config.model.path),
        ("model.base", config.model.base),
        ("data.path", config.data.path),
    ):
        if value is not None and Path(os.path.realpath(directory)) in Path(os.path.realpath(value)).parents:
            raise FastflowError(
                f"{name} = {value} lies in run.output = {directory}, which this run would replace; "
                "choose another --run.output"
            )


def reclaimable(directory: Path, *, resumed: bool = False) -> int:
    """Bytes of an earlier run that `prepare` will remove; of one that is resumed, those of its saves."""
    names = [CHECKPOINTS] if resumed else _OURS
    entries = [entry for entry in (directory / name for name in names) if not entry.is_symlink()]
    files = (file for entry in entries for file in ([entry] if entry.is_file() else entry.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def prepare(directory: Path, config: Config) -> None:
    """Make the directory, remove what an earlier run left in it, and write the resolved settings.

    They are the last to go and the first to come, so that the directory stays a run's wherever this ends.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in _OURS:
            remove(directory / name)
        replace_text(directory / CONFIG_FILE, to_yaml(config))


def undo(directory: Path) -> None:
    """Remove what `prepare` and the first records made of a run that cannot begin: the next one may have the place."""
    for name in _OURS:
        remove(directory / name)


def lengths(directory: Path) -> dict[str, int]:
    """Bytes of each file that grows with the run."""
    return {name: (directory / name).stat().st_size if (directory / name).exists() else 0 for name in GROWING}


def bad_file(directory: Path, step: int, update: int, of: int) -> Path:
    """Where the batch of an update that was skipped is kept. update: of the step, from 1. of: how many it has."""
    return directory / BAD / (f"step-{step}-update-{update}.safetensors" if of > 1 else f"step-{step}.safetensors")


def cut_back(directory: Path, config: Config, *, step: int, sizes: Mapping[str, int], updates: int = 0) -> None:
    """Take a run's records back to the end of a step, and write the settings that it goes on with.

    sizes: see `lengths`. updates: of the next step, that are done. A record that is shorter than it was then goes on
    from its last whole line, with a warning.
    """
    with writing(directory):
        for name, size in sizes.items():
            _cut(directory / name, size)
        for path in (directory / SAMPLES).glob("step-*.txt"):
            found = _SAMPLES_NAME.fullmatch(path.name)  # other files are not ours
            if found is not None and int(found[1]) > step:
                path.unlink()
        for path in (directory / BAD).glob("step-*"):
            found = _BAD_NAME.fullmatch(path.name.removesuffix(FRESH))
            if found is None:
                continue
            if path.name.endswith(FRESH) or (int(found[1]), int(found[2] or 1)) > (step + 1, updates):
                path.unlink()
        replace_text(directory / CONFIG_FILE, to_yaml(config))


def _cut(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        logger.warning("%s has %d bytes, but had %d when the run was saved; lines of it are lost", path, found, size)
        size = path.read_bytes().rfind(b"\n") + 1 if found else 0
    if found > size:
        os.truncate(path, size)
