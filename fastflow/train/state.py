"""What a save holds beside the tensors that are trained: where the run stands, and what it has begun."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError
from fastflow.rollout.sampler import Request
from fastflow.train.finite import NONE_SKIPPED, Skips

GROUPS_FILE = "groups.safetensors"


@dataclass(frozen=True)
class UnderWay:
    """A step that is sampled and not yet done.

    version: of the policy before its updates. results: of those that are done.
    """

    groups: Sequence[Group]
    version: int
    results: tuple[UpdateResult, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where a run stands between two updates.

    step: whole steps done. updates: optimiser updates done. version: the policy's. prompts: the stream's state after
    these steps. generators: the random states of this rank. records: bytes of each file that grows. alarms: what they
    remember. metric: the one that chooses the best save, at `step`. under_way: the next step, where its updates have
    begun. ahead: the groups of the next step, where they come from weights that are gone. skips: updates that were
    skipped.
    """

    step: int
    updates: int
    version: int
    prompts: Mapping[str, int]
    generators: Mapping[str, torch.Tensor]
    records: Mapping[str, Any]
    alarms: Mapping[str, Any]
    metric: float | None = None
    under_way: UnderWay | None = None
    ahead: Sequence[Group] | None = None
    skips: Skips = NONE_SKIPPED

    @property
    def begun(self) -> Sequence[Group] | None:
        """The groups of the next step, where they are known."""
        return self.ahead if self.under_way is None else self.under_way.groups


@dataclass(frozen=True)
class Identity:
    """What a run may not change without being another: digests of the prompts' token ids, of the base's weights and of
    the tokenizer.

    total_updates: that the learning rate's course spans. objective: the name of its class. tokenizer, objective: ""
    in saves of an earlier fastflow.
    """

    prompts: str
    base: str
    total_updates: int
    versions: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str = ""
    objective: str = ""


def write_rollout(directory: Path, position: Position) -> None:
    """The responses that are begun, and the updates that are done with them. Raises OSError."""
    from safetensors.torch import save_file

    directory.mkdir()
    if position.begun is not None:
        save_file(tensors_of_groups(position.begun), directory / GROUPS_FILE)
    for number, result in enumerate(position.under_way.results if position.under_way else (), start=1):
        save_file(tensors_of_result(result), directory / f"update-{number}.safetensors")


def scalars_of(result: UpdateResult) -> dict[str, Any]:
    """The numbers of a result, for JSON, which knows no NaN; its tensors go to a file."""
    values = {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result)}
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
        if not isinstance(value, (torch.Tensor, list))
    }


def read_groups(directory: Path, requests: Sequence[Request]) -> list[Group]:
    """The groups of these requests. Raises ValueError where they are those of others."""
    from safetensors.torch import load_file

    found = load_file(directory / GROUPS_FILE)
    if found["seed"].tolist() != [seed for request in requests for seed in request.seeds]:
        raise ValueError("its responses are not those of the next step's prompts")
    trajectories = iter(trajectories_of(found))
    return [Group(request.prompt, tuple(next(trajectories) for _ in request.seeds)) for request in requests]


def trajectories_of(tensors: Mapping[str, torch.Tensor]) -> list[Trajectory]:
    """The responses that `tensors_of_groups` took apart."""
    found = {name: tensor.numpy() for name, tensor in tensors.items()}
    ends = found["length"].cumsum()[:-1]
    parts = {name: np.split(found[name], ends) for name in ("ids", "logprobs", "sampler_logprobs") if name in found}
    return [
        Trajectory(
            parts["ids"][index],
            parts["logprobs"][index],
            "stop" if found["stopped"][index] else "length",
            int(found["seed"][index]),
            int(found["version"][index]),
            parts["sampler_logprobs"][index] if "sampler_logprobs" in parts else None,
        )
        for index in range(len(found["length"]))
    ]


def read_result(directory: Path, number: int, scalars: Mapping[str, Any]) -> UpdateResult:
    """The result of the number-th update of a step, from 1. Raises FastflowError where another fastflow wrote it."""
    from safetensors.torch import load_file

    path = directory / f"update-{number}.safetensors"
    tensors = load_file(path)
    if {*tensors, *scalars} != {entry.name for entry in dataclasses.fields(UpdateResult)}:
        raise FastflowError(
            f"{path} says other things of an update than this fastflow does; another one wrote it: go on with that one"
        )
    return result_of(tensors, scalars)


def result_of(values: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]) -> UpdateResult:
    """The result that `tensors_of_result` and `scalars_of` took apart."""
    tensors: dict[str, Any] = dict(values)
    ends = tensors["length"].long().cumsum(0)[:-1].numpy()
    for name in ("token_logprobs", "base_token_logprobs"):
        tensors[name] = np.split(tensors[name].numpy(), ends)
    numbers = {name: float(scalars[name]) for name in ("loss", "grad_norm", "lr")}
    return UpdateResult(**tensors, **{**scalars, **numbers})


def tensors_of_groups(groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    """Everything about the responses, end to end in flat order; of their prompts nothing."""
    flat = flatten(groups)
    arrays = {
        "length": np.array([len(entry) for entry in flat], dtype=np.int64),
        "ids": np.concatenate([entry.response_ids for entry in flat]),
        "logprobs": np.concatenate([entry.behaviour_logprobs for entry in flat]),
        "stopped": np.array([entry.finish_reason == "stop" for entry in flat]),
        "seed": np.array([entry.seed for entry in flat], dtype=np.int64),
        "version": np.array([entry.weight_version for entry in flat], dtype=np.int64),
    }
    theirs = [entry.sampler_logprobs for entry in flat if entry.sampler_logprobs is not None]
    if theirs:
        arrays["sampler_logprobs"] = np.concatenate(theirs)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tensors_of_result(result: UpdateResult) -> dict[str, torch.Tensor]:
    """The tensors of a result, values per token end to end."""
    tensors = {}
    for entry in dataclasses.fields(result):
        value = getattr(result, entry.name)
        if isinstance(value, list):
            tensors[entry.name] = torch.from_numpy(np.concatenate(value))
        elif isinstance(value, torch.Tensor):
            tensors[entry.name] = value.contiguous()
    return tensors
