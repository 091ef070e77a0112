"""The files of a run: made at its start, and never mixed with those of an earlier one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastflow.config.reader import to_yaml
from fastflow.config.schema import Config
from fastflow.errors import FastflowError
from fastflow.run import swap
from fastflow.run.lock import HOLDER_FILE, LOCK_FILE
from fastflow.run.output_file import writing

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
PARTS = ("policy", "adapter", "trainer")  # of a save
RESCUED = "rescued"  # what a run could not save in another way
REHEARSAL = "save.rehearsal"
_OURS = (
    CONFIG_FILE, METRICS_FILE, SAMPLES_FILE, EVALUATION_FILE, REPORT_FILE,
    "samples", "tensorboard", *PARTS, RESCUED,
)  # fmt: skip
_PASSING = {LOCK_FILE, HOLDER_FILE, REHEARSAL}  # what a run that was killed before its first step leaves


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds a run, unless it may be overwritten, and one that holds anything else.

    A save that its run was killed in is brought to its end, or to nothing.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FastflowError(f"run.output = {directory} is a file; choose a directory")
    holds_run = (directory / CONFIG_FILE).exists()
    if holds_run:
        with writing(directory):
            swap.recover(directory, PARTS)
    if holds_run and not overwrite:
        raise FastflowError(
            f"{directory} already holds a run; choose another --run.output, or --run.overwrite true to replace it"
        )
    if not holds_run and any(entry.name not in _PASSING for entry in directory.iterdir()):
        raise FastflowError(f"{directory} is not empty and not a run of fastflow; choose another --run.output")


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


def reclaimable(directory: Path) -> int:
    """Bytes of an earlier run that `prepare` will remove."""
    entries = [directory / name for name in _OURS]
    files = (file for entry in entries for file in ([entry] if entry.is_file() else entry.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def prepare(directory: Path, config: Config) -> None:
    """Make the directory, remove what an earlier run left in it, and write the resolved settings."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in _OURS:
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (directory / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
