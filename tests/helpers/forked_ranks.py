"""Runs on several ranks whose processes are forked from this one, so that they start at once; by torchrun's engine."""

from __future__ import annotations

import mmap
import os
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from dying import exit_status
from rank_runs import is_gone

MOST_RANKS = 16
END_SECONDS = 60.0  # in which a run ends after one of its processes was killed, on a machine with nothing else to do
BUSY = 4  # times longer, where others use the machine


class Pids:
    """The process of each rank, in memory that the ranks share with those who forked them. 0: it has not begun."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * MOST_RANKS)

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def enter(self, rank: int) -> None:
        struct.pack_into("q", self._memory, 8 * rank, os.getpid())

    def of(self, count: int) -> list[int]:
        return [pid for (pid,) in struct.iter_unpack("q", self._memory[: 8 * count]) if pid]


def launch(count: int, arguments: Sequence[str], begin: Callable[[int], None]) -> None:
    """Run `fastflow` with these arguments on `count` ranks, as `--devices` does. begin: what a rank does before it,
    given its number. Raises ChildFailedError where a rank fails.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, monitor_interval=0.1, start_method="fork",
        run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip
    elastic_launch(settings, _be_a_rank)(list(arguments), begin)


def _be_a_rank(arguments: list[str], begin: Callable[[int], None]) -> int:
    from fastflow.cli import main

    begin(int(os.environ["RANK"]))
    if code := main(arguments):
        os._exit(code)
    return 0


def children_of(pid: int) -> list[int]:
    """The processes that a rank has started, such as its engine; none where it is gone."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


def end_of(launcher: int, ranks: Sequence[int]) -> int:
    """Wait until the launcher and all ranks are gone. Returns the launcher's exit code. Raises AssertionError where
    they are not in time.
    """
    deadline, code = time.monotonic() + BUSY * END_SECONDS, None
    while code is None or not all(map(is_gone, ranks)):
        assert time.monotonic() < deadline, f"{launcher} or one of its ranks {ranks} does not end"
        code = exit_status(launcher) if code is None else code
        time.sleep(0.02)
    return code
