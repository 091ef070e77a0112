"""Runs `fastflow train` with settings as the fixture `settings` has them."""

from __future__ import annotations

import json

from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.train.command import train


def configure(settings, **changes):
    merged = {**settings, **{name.replace("__", "."): value for name, value in changes.items()}}
    return read_config([f"--{name}={value}" for name, value in merged.items()])[0]


def run(settings, **changes):
    return train(configure(settings, **changes), Console(quiet=True))


def metrics_of(settings):
    lines = (settings["run.output"] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
