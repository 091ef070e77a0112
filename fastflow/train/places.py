"""The places that the settings name, as a dry run finds them: what is missing, and what this machine cannot check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastflow.config.places import is_path
from fastflow.config.presets import PRESETS
from fastflow.config.schema import Config
from fastflow.data import is_file, is_gym
from fastflow.errors import FastflowError
from fastflow.run.directory import check_directory

OF_THE_DEMO = {PRESETS["demo"][name] for name in ("model.path", "data.path")}  # it makes them


def check_places(config: Config) -> list[str]:
    """Raise FastflowError for paths of which nothing is there, and for an output that can be no directory.

    Returns one line for each thing that another machine may have: a hub's models and data, a device.
    """
    check_directory(Path(config.run.output))
    return [f"NOT checked here: {line}" for line in (*_models(config), *_data(config), *_device(config))]


def _models(config: Config) -> Iterator[str]:
    for name, place in (("model.path", config.model.path), ("model.base", config.model.base)):
        if place is None or Path(place).is_dir():
            continue
        if place in OF_THE_DEMO:
            yield f"{name} = {place}, which `fastflow demo` makes"
        elif is_path(place):
            raise FastflowError(f"model directory {place} does not exist; check {name}{_tilde(place)}")
        else:
            yield f"{name} = {place} is no directory here, so it counts as a hub id: its family, context and weights"


def _data(config: Config) -> Iterator[str]:
    place = config.data.path
    if is_gym(config.data) or os.path.exists(place):
        return
    if place in OF_THE_DEMO:
        yield f"data.path = {place}, which `fastflow demo` makes"
    elif is_file(config.data) or is_path(place):
        raise FastflowError(f"data file {place} does not exist; check data.path{_tilde(place)}")
    else:
        yield f"data.path = {place} is no file or directory here, so it counts as a hub id: its records"


def _device(config: Config) -> Iterator[str]:
    import torch

    from fastflow.models.opening import parse_device

    name = config.model.device
    if name != "auto" and parse_device(name).type == "cuda" and not torch.cuda.is_available():
        yield f"model.device = {name}, since torch sees no CUDA device"


def _tilde(place: str) -> str:
    return " (write your home directory in full: ~ is not replaced here)" if place.startswith("~") else ""
