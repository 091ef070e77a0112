"""Whether shared memory has room for weights, before the first of them is written there.

A write beyond the room kills the process without a word. The ranks of one machine share it, so their needs are summed.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastflow.counted import sized
from fastflow.errors import FastflowError
from fastflow.machine import SHARED_MEMORY, free_shared_memory
from fastflow.models.ranks import Ranks

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # one for each machine, whatever it is called


@dataclass(frozen=True)
class Need:
    """What a rank is about to take. place: of its shared memory; containers of one machine have one each. Bytes."""

    place: tuple[str, int]
    needed: int
    free: int


def require_room(device: torch.device, needed: int, ranks: Ranks | None = None) -> None:
    """Refuse weights without room in shared memory. Does nothing on a GPU, which has them in its own.

    needed: bytes of this rank. ranks: a collective of all of them, of which nobody may take memory before it.
    Raises FastflowError on all ranks where those of one machine do not fit there together.
    """
    if device.type != "cpu":
        return
    ranks = ranks or Ranks()
    needs = ranks.gather(_need(needed))
    with ranks.together():
        if (own := needs[ranks.rank]) is not None:
            check_room(own, needs)


def check_room(own: Need, needs: Sequence[Need | None]) -> None:
    """Raise FastflowError where the needs at the place of `own` are more than was free before any took it."""
    here = [need for need in needs if need is not None and need.place == own.place]
    total, free = sum(need.needed for need in here), min(need.free for need in here)
    if total > free:
        each = f", {sized(own.needed)} for each of the {len(here)} ranks of this machine" if len(here) > 1 else ""
        fewer = ", start fewer ranks on this machine" if len(here) > 1 else ""
        raise FastflowError(
            f"the policy's weights need {sized(total)} of shared memory{each}, and {SHARED_MEMORY} has {sized(free)} "
            f"left; enlarge it (docker run --shm-size=..., or --ipc=host){fewer}, or sample with --rollout.engine local"
        )


def _need(needed: int) -> Need | None:
    """None where the system has no such memory of limited size."""
    free = free_shared_memory()
    if free is None:
        return None
    try:
        machine = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        machine = socket.gethostname()
    return Need((machine, SHARED_MEMORY.stat().st_dev), needed, free)
