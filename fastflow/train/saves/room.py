"""Check, before training, that the run can be saved: by the names of what it trains, and by the room on the disk."""

from __future__ import annotations

import logging
import math
import resource
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.errors import FastflowError
from fastflow.run.directory import reclaimable
from fastflow.train.learner import Learner
from fastflow.train.saves.checkpoint import named_parameters
from fastflow.train.saves.tensors import FILE_BYTES

logger = logging.getLogger(__name__)

MOMENTS = 2  # of AdamW, each in the parameter's type
SMALL_FILES = 2**20  # settings, metrics and samples


@dataclass(frozen=True)
class SaveSize:
    """Bytes of one save. adapter: 0 without LoRA. optimizer: with the log_z head and its moments. rounded: the trained
    weights once more, where the policy is exported in another type than they have.
    """

    policy: int
    adapter: int
    optimizer: int
    tokenizer: int = 0
    rounded: int = 0

    @property
    def total(self) -> int:
        return self.policy + self.adapter + self.optimizer + self.rounded + self.tokenizer + SMALL_FILES

    @property
    def largest_file(self) -> int:
        return max(self.policy, self.adapter, min(self.optimizer + self.rounded, FILE_BYTES))


def save_size(learner: Learner, export_dtype: str, *, tokenizer: int = 0) -> SaveSize:
    """Return the size of one save. For LoRA in bfloat16, `auto` counts as float32, which it may become.

    tokenizer: bytes of the tokenizer's files.
    """
    weights = [parameter for name, parameter in learner.policy.causal_lm.named_parameters() if ".lora_" not in name]
    adapters = [parameter for parameter in learner.policy.parameters() if not _is_among(parameter, weights)]
    widest = torch.float32 if adapters and export_dtype == "auto" else None
    dtype = widest if export_dtype == "auto" else getattr(torch, export_dtype)
    trained = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    head = learner.objective.parameters()
    return SaveSize(
        policy=sum(weight.numel() * (dtype or weight.dtype).itemsize for weight in weights),
        adapter=_bytes(adapters),
        optimizer=MOMENTS * _bytes(trained) + _bytes(head),
        tokenizer=tokenizer,
        rounded=_bytes(one for one in weights if one.requires_grad and one.dtype != (dtype or one.dtype)),
    )


def check_room(learner: Learner, config: Config, directory: Path, small_files: int, *, resumed: bool) -> None:
    """Raise FastflowError where two parameters share a name, or the disk has no room for the run's saves.

    small_files: bytes of a save's files beside the weights.
    """
    named_parameters(learner)
    size = save_size(learner, config.run.export_dtype, tokenizer=small_files)
    check_disk(directory, size, config, reclaimed=reclaimable(directory, resumed=resumed))


def check_disk(directory: Path, size: SaveSize, config: Config, *, reclaimed: int = 0) -> None:
    """Raise FastflowError where the disk or the limit on a file's size is too small for the saves of the run.

    Saves that are kept stand beside the one that is written. reclaimed: bytes that the run will free.
    """
    run = config.run
    saves = math.ceil(run.steps / run.save_every) if run.save_every else 1
    if run.best_metric is not None:  # saved where it is best
        saves += math.ceil(run.steps / config.eval.every)
    copies = min(saves, run.keep + 1 + (run.best_metric is not None))
    free = shutil.disk_usage(directory).free + reclaimed
    if free < copies * size.total:
        raise FastflowError(
            f"run.output = {directory} has {sized(free)} left, but {'a save' if copies == 1 else f'{copies} saves'} of "
            f"this run {'takes' if copies == 1 else 'take'} {sized(copies * size.total)} (policy {sized(size.policy)}, "
            f"optimizer {sized(size.optimizer)} each); make room, choose another --run.output"
            + (", set run.keep = 1" if copies > 2 and free >= 2 * size.total else "")
            + (", set run.save_every = 0" if copies > 1 and free >= size.total else "")
            + ", or set lora.rank or --run.export_dtype bfloat16"
        )
    if free < 2 * size.total:
        logger.warning(
            "%s has %s left, and a save takes %s: there is no room for a second save beside it",
            directory, sized(free), sized(size.total),
        )  # fmt: skip
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit not in (resource.RLIM_INFINITY, -1) and limit < size.largest_file:
        raise FastflowError(
            f"a file may have at most {sized(limit)} here (ulimit -f), but a save of this run has a file of "
            f"{sized(size.largest_file)}; raise the limit (ulimit -f unlimited) before the run"
        )


def _is_among(parameter: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    return any(parameter is other for other in others)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
