"""Find the memory that a plan must fit: a GPU's, otherwise the machine's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastflow.config.schema import ModelConfig
from fastflow.counted import counted
from fastflow.errors import FastflowError
from fastflow.machine import free_shared_memory, ram
from fastflow.models.opening import resolve_device

GIB = 2**30
LARGEST_GIB = 1e6


@dataclass(frozen=True)
class Device:
    """The device of a plan.

    type: cuda or cpu. memory: bytes in all, for one rank. origin: the source of that number. shared: free bytes of
    shared memory on this machine; None where the plan is for another machine or needs none. count: of such devices, one
    for each rank.
    """

    type: str
    memory: int
    origin: str
    shared: int | None = None
    count: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.type == "cuda"


def find_device(settings: ModelConfig, memory_gib: float | None, count: int = 1) -> Device:
    """Return the device of model.device, `count` of them; `memory_gib`, where given, replaces its own memory.

    A size alone means a GPU of that size, in this machine or in another. With model.device = cpu, it means RAM, which
    the ranks share. Raises FastflowError for a size that is not above 0 or exceeds a million GiB, and for devices that
    do not exist.
    """
    one = _find_one(settings, memory_gib)
    if count == 1:
        return one
    if not one.is_gpu:
        return replace(one, memory=one.memory // count, origin=f"1/{count} of {one.origin}", count=count)
    if memory_gib is None and count > torch.cuda.device_count():
        raise FastflowError(
            f"--devices {count}, but this machine has {counted(torch.cuda.device_count(), 'CUDA device')}; give "
            "--memory to plan for another"
        )
    return replace(one, count=count)


def _find_one(settings: ModelConfig, memory_gib: float | None) -> Device:
    if memory_gib is not None:
        if not 0 < memory_gib <= LARGEST_GIB:
            raise FastflowError(
                f"--memory is {memory_gib:g}, but must be above 0 and at most {LARGEST_GIB:,.0f}; give the device's "
                "memory in GiB"
            )
        device_type = "cpu" if _names_the_cpu(settings.device) else "cuda"
        return Device(device_type, int(memory_gib * GIB), "--memory")
    device = resolve_device(settings.device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Device("cuda", properties.total_memory, properties.name)
    return Device("cpu", ram(), "this machine's RAM", free_shared_memory())


def _names_the_cpu(name: str) -> bool:
    """Return whether model.device names the CPU. Raises FastflowError for what is no device; a GPU may be absent."""
    if name == "auto" or name.partition(":")[0] == "cuda":
        return False
    return resolve_device(name).type == "cpu"
