"""`fastflow train --devices N`: starts N ranks of itself on this machine, by torchrun's engine, and ends with them."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

from fastflow.children import python_module, same_path
from fastflow.config.parser import take_option
from fastflow.errors import FastflowError
from fastflow.interrupt import tell
from fastflow.machine import cores


class Failure(Protocol):
    """How a rank ended. exitcode: negative for a signal."""

    exitcode: int
    timestamp: int  # seconds


def split_devices(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Split `--devices N` off the arguments of `fastflow train`; without it, N is 1. Raises FastflowError for no N."""
    given, rest = take_option("--devices", arguments)
    if given is None:
        return 1, rest
    if not given.isdecimal() or not 1 <= int(given) <= 1024:
        raise FastflowError(f"--devices needs a number of devices from 1 on, not {given or 'nothing'}")
    return int(given), rest


def run_on_devices(count: int, arguments: Sequence[str]) -> int:
    """Run `fastflow train` with these arguments as `count` ranks. Returns the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))  # they share the cores
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, monitor_interval=0.1,
        run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip
    os.environ |= same_path()
    interpreter, *command = python_module("fastflow", "train", *arguments)
    try:
        elastic_launch(settings, interpreter)(*command)
    except ChildFailedError as error:
        return ended(error.failures)
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def ended(failures: Mapping[int, Failure]) -> int:
    """Name the rank that failed first, where it could not speak. Returns the exit code of the whole."""
    stopped = -signal.SIGTERM  # so the others end, once one has failed
    rank, first = min(
        failures.items(),
        key=lambda entry: (entry[1].exitcode == stopped, entry[1].timestamp, entry[1].exitcode >= 0, entry[0]),
    )
    if first.exitcode >= 0:
        return first.exitcode
    name = signal.Signals(-first.exitcode).name
    memory = ": the machine may have run out of memory" if name == "SIGKILL" else ""
    tell(f"fastflow: error: rank {rank} was killed by {name}{memory}; the other ranks were stopped")
    return 128 - first.exitcode
