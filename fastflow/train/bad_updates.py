"""Batches whose update was skipped: kept in RUN/bad, with all that it takes to compute them again.

A file holds the prompts' and responses' token ids, what was known about them, and what the update computed. Its header
says which update that was. `fastflow replay` reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastflow.config.schema import Config
from fastflow.data.trajectory import Group
from fastflow.data.update import UpdateResult
from fastflow.errors import message_of
from fastflow.objectives.judging import Judgement
from fastflow.run.directory import BAD, bad_file
from fastflow.run.durable import FRESH, publish_file
from fastflow.train.resume import versions
from fastflow.train.state import scalars_of, tensors_of_groups, tensors_of_result

FORMAT = 2
HEADER = "fastflow_bad_update"  # the entry of the file's metadata that holds the JSON below
DECIDING = ("lora", "objective", "importance", "surrogate", "released")  # sections
MOST_KEPT = 5  # files of a run: the first ones tell most, and the disk is for saves


@dataclasses.dataclass(frozen=True)
class Place:
    """Which update it was. update: of the step, from 1. of: how many the step has. updates: done in the run before."""

    step: int
    update: int
    of: int
    updates: int


def keep(
    run: Path,
    place: Place,
    groups: Sequence[Group],
    judgement: Judgement,
    result: UpdateResult,
    config: Config,
    objective: str,
) -> str:
    """Write the batch of an update that was skipped. Returns a sentence on where it is, or why it is nowhere.

    objective: the name of its class. Raises nothing: no run ends because of this.
    """
    path = bad_file(run, place.step, place.update, place.of)
    fresh = path.with_name(path.name + FRESH)
    try:
        path.parent.mkdir(exist_ok=True)
        kept = sum(1 for entry in path.parent.glob("*.safetensors") if entry != path)
        if kept >= MOST_KEPT:
            return f"its batch was not kept: {run / BAD} holds the first {kept} already"
        _write(fresh, place, groups, judgement, result, config, objective)
        publish_file(fresh, path)
    except Exception as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        return f"its batch could not be kept ({message_of(error)})"
    return f"`fastflow replay {path}` says where its numbers go bad"


def digest_of_settings(config: Config) -> str:
    """SHA-256 of the settings that decide an update's loss and gradient, beside the model's."""
    deciding: dict[str, Any] = {name: dataclasses.asdict(getattr(config, name)) for name in DECIDING}
    deciding["max_response_tokens"] = config.rollout.max_response_tokens  # by which some methods divide
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _write(
    path: Path,
    place: Place,
    groups: Sequence[Group],
    judgement: Judgement,
    result: UpdateResult,
    config: Config,
    objective: str,
) -> None:
    from safetensors.torch import save_file

    prompts = [group.prompt.ids for group in groups]
    tensors = {
        "prompts/ids": torch.from_numpy(np.concatenate(prompts)),
        "prompts/length": torch.tensor([len(ids) for ids in prompts]),
        "prompts/responses": torch.tensor([len(group.trajectories) for group in groups]),
        "penalty": judgement.penalty.cpu().contiguous(),
        "reward": judgement.reward.cpu().contiguous(),
        **{f"responses/{name}": tensor for name, tensor in tensors_of_groups(groups).items()},
        **{f"result/{name}": tensor for name, tensor in tensors_of_result(result).items()},
    }
    about: dict[str, Any] = {
        "format": FORMAT,
        **dataclasses.asdict(place),
        "objective": objective,
        "settings": digest_of_settings(config),
        "versions": versions(),
        "result": scalars_of(result),
    }
    # safetensors shares no memory between tensors: penalty and reward may both be the same zeros
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {HEADER: json.dumps(about)})
