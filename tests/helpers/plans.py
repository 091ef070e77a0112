"""Configurations and devices of the plan's tests, and what `fastflow plan` answers."""

from __future__ import annotations

from fastflow.config.reader import read_config
from fastflow.plan.device import GIB, Device
from fastflow.plan.estimate import estimate

CPU = Device("cpu", 64 * GIB, "a test")
GPU = Device("cuda", 80 * GIB, "a test")
LARGE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": 4096,
         "max_position_embeddings": 16384}  # fmt: skip


def configure(path, **changes):
    settings = {"model.device": "cpu", **{name.replace("__", "."): value for name, value in changes.items()}}
    return read_config([f"--model.path={path}", *(f"--{name}={value}" for name, value in settings.items())])[0]


def rows_of(config, device=CPU):
    return {(row.side, row.name): row for row in estimate(config, device).rows}


def total_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
