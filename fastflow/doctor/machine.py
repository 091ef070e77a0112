"""Check what has broken or slowed runs on a machine: shared memory and threads."""

from __future__ import annotations

import os

from fastflow.counted import counted, sized
from fastflow.doctor.check import NOTE, OK, Check
from fastflow.machine import SHARED_MEMORY, cores, free_shared_memory

ENOUGH = 2**30
ENLARGE = "docker run --shm-size=16g ..., or docker run --ipc=host ..."


def check_shared_memory() -> Check:
    """Check the shared memory, where vLLM on a CPU reads the policy's weights; Docker's default is 64 MiB."""
    free = free_shared_memory()
    if free is None:
        return Check("shared memory", OK, "no /dev/shm on this system; torch shares through files")
    found = f"{sized(free)} free in {SHARED_MEMORY}"
    if free < ENOUGH:
        return Check("shared memory", NOTE, f"{found}; on a CPU, vLLM shares the policy's weights there", ENLARGE)
    return Check("shared memory", OK, found)


def check_threads() -> Check:
    """Compare threads and cores: more threads than cores slow torch down by an order of magnitude."""
    there, asked = cores(), os.environ.get("OMP_NUM_THREADS", "")
    found = f"{counted(there, 'core')}, OMP_NUM_THREADS {asked or 'not set'}"
    if asked.isdigit() and int(asked) > there:
        return Check("threads", NOTE, f"{found}: more threads than cores", f"export OMP_NUM_THREADS={there}")
    return Check("threads", OK, found)
