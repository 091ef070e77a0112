"""A save read back into a run: policy, log_z, optimiser and schedule, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import copy_whole
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks
from fastflow.train.finite import Skips
from fastflow.train.learner import Learner
from fastflow.train.saves.checkpoint import named_parameters
from fastflow.train.saves.saved_weights import SavedWeights
from fastflow.train.saves.tensors import catalogue, read_tensors
from fastflow.train.state import GROUPS_FILE

NEEDED = (
    "step", "updates", "version", "prompts", "records", "alarms", "under_way", "identity", "ranks", "without_moments",
)  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """A save as it is read back. state: state.json."""

    directory: Path
    state: dict[str, Any]

    @property
    def rollout(self) -> Path:
        return self.directory / "trainer" / "rollout"

    def is_of(self, ranks: Ranks) -> bool:
        """Whether as many ranks saved it, so that each goes on with random states of its own."""
        return bool(self.state["ranks"] == ranks.count and _generators(self, ranks.rank).exists())

    @property
    def has_groups(self) -> bool:
        return (self.rollout / GROUPS_FILE).exists()


def read(directory: Path) -> Saved:
    """The save in a directory that has proved itself. Raises FastflowError where another fastflow wrote less."""
    state = json.loads((directory / "trainer" / "state.json").read_text(encoding="utf-8"))
    if missing := [name for name in NEEDED if name not in state]:
        raise FastflowError(
            f"the save in {directory} says nothing about {', '.join(missing)} in trainer/state.json; another fastflow "
            "wrote it: go on with that one"
        )
    return Saved(directory, state)


@torch.no_grad()
def restore(saved: Saved, learner: Learner) -> None:
    """Give policy, log_z, optimiser and schedule the state of a save, to the bit.

    Raises FastflowError for a parameter of which weights or moments are missing, or of another shape or type.
    """
    parameters, updates = named_parameters(learner), int(saved.state["updates"])
    try:
        _restore_weights(saved.directory, learner)
        _restore_moments(saved, learner, parameters, updates)
    except KeyError as error:
        raise FastflowError(
            f"the save in {saved.directory} lacks {error.args[0]}, which this run trains; resume it with the settings "
            "that it was started with"
        ) from error
    except ValueError as error:
        raise FastflowError(f"the save in {saved.directory} does not fit this run: {error}") from error
    learner.policy.version = int(saved.state["version"])
    learner.skips = Skips(**saved.state.get("skips", {}))  # an earlier fastflow skipped none
    schedule = learner.schedule
    schedule.last_epoch, schedule._step_count = updates, updates + 1
    schedule._last_lr = [
        base * factor(updates) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, lr in zip(learner.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = lr


def read_generators(saved: Saved, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The random states of this rank; those of the first, where another number of ranks saved them."""
    from safetensors.torch import load_file

    return load_file(_generators(saved, ranks.rank if saved.is_of(ranks) else 0))


def _generators(saved: Saved, rank: int) -> Path:
    return saved.directory / "trainer" / "generators" / f"rank-{rank}.safetensors"


def _restore_weights(directory: Path, learner: Learner) -> None:
    tensors = directory / "trainer" / "tensors"
    stored = catalogue(tensors)
    targets: dict[str, torch.Tensor] = {}
    with SavedWeights(directory, learner.policy.causal_lm.config) as saved:
        for name, parameter in learner.policy.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if f"weights/{name}" in stored:
                targets[f"weights/{name}"] = parameter.detach()
                continue
            parts = saved.find(name, parameter.shape)
            if parts is None:
                raise KeyError(f"the weights of {name}")
            copy_whole(parameter, saved.join(parts, parameter))
            PULSE.work()
    if (head := learner.log_z_head) is not None:
        targets |= {f"log_z/{name}": one for name, one in head.state_dict().items()}
    read_tensors(tensors, targets)


def _restore_moments(
    saved: Saved, learner: Learner, parameters: Mapping[str, torch.nn.Parameter], updates: int
) -> None:
    directory = saved.directory / "trainer" / "tensors"
    stored = catalogue(directory)
    untouched = set(saved.state["without_moments"])
    state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    targets: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        if name in untouched:
            continue
        fresh = {
            "step": torch.zeros((), device=parameter.device),
            **{key: torch.empty_like(parameter) for key in ("exp_avg", "exp_avg_sq")},
        }
        state[parameter] = fresh
        targets |= {f"moments/{name}/{key}": tensor for key, tensor in fresh.items()}
    unknown = {name for name in stored if name.startswith("moments/")} - targets.keys()
    if unknown:
        raise ValueError(f"it has {min(unknown)}, which this run does not train")
    read_tensors(directory, targets)
    counts = [float(entry["step"]) for entry in state.values()]
    if counts and not (max(counts) == updates and min(counts) >= 1):
        raise ValueError(f"its optimiser counts {counted(max(counts), 'update', 'g')} and its state {updates}")
    learner.optimizer.state.clear()
    learner.optimizer.state.update(state)
