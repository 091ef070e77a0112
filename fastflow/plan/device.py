"""Which memory a plan is held against: a GPU's, or that of a machine without one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fastflow.config.schema import ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.packed import resolve_device

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
LARGEST_GIB = 1e6
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Device:
    """type: cuda or cpu. memory: bytes in all. origin: where that number is from. shared: bytes that are free in
    shared memory here, or None where the plan is for another machine or needs none."""

    type: str
    memory: int
    origin: str
    shared: int | None = None

    @property
    def is_gpu(self) -> bool:
        return self.type == "cuda"


def find_device(settings: ModelConfig, memory_gib: float | None) -> Device:
    """The device of model.device, with `memory_gib` in place of its own memory where given.

    A size alone means a GPU of that size, which need not be in this machine; with model.device = cpu, it means RAM.
    Raises FastflowError for a size that is not above 0 or of more than a million GiB, and for a device that does not
    exist.
    """
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
    return Device("cpu", ram(), "this machine's RAM", shared_memory())


def _names_the_cpu(name: str) -> bool:
    """Whether model.device names the CPU; refuses what is no device without asking for a GPU to be present."""
    if name == "auto" or name.partition(":")[0] == "cuda":
        return False
    return resolve_device(name).type == "cpu"


def ram() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, CGROUP_LIMITS):
        if file.is_file() and (limit := file.read_text().strip()).isdigit():
            sizes.append(int(limit))
    return min(sizes)


def shared_memory() -> int | None:
    """Free bytes of /dev/shm, where there is one."""
    if not SHARED_MEMORY.is_dir():
        return None
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize
