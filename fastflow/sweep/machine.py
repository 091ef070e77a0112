"""What each of the runs that go on at once gets of its surroundings: threads, GPUs of its own, a group in W&B."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

WANDB_GROUP = "WANDB_RUN_GROUP"


def share_of(
    slot: int, *, jobs: int, devices: int, cores: int, gpus: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables of the run in a slot, from 0 to jobs - 1, beyond those that are `given`.

    Runs share the cores evenly. Where there are several GPUs, each run sees `devices` of them; more runs than that
    share GPUs in turn.
    """
    share: dict[str, str] = {}
    if jobs * devices > 1 and "OMP_NUM_THREADS" not in given:
        share["OMP_NUM_THREADS"] = str(max(cores // (jobs * devices), 1))
    if jobs > 1 and len(gpus) > 1:
        chosen = [gpus[(slot * devices + index) % len(gpus)] for index in range(min(devices, len(gpus)))]
        share["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return share


def group_of(output: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which Weights & Biases shows the runs of a sweep together, unless it is `given`."""
    return {} if WANDB_GROUP in given else {WANDB_GROUP: output.resolve().name}


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA shows, by the names that CUDA_VISIBLE_DEVICES takes. Starts no CUDA context."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if named is None else [part.strip() for part in named.split(",")]
    return names[:count]
