"""The processes of a run, one for each device: who this one is, and what they tell each other.

torchrun says so in the environment. Values travel between the ranks' own processes only; nothing here reads a file.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastflow.errors import FastflowError, message_of
from fastflow.models.pulse import PULSE

AnyObject = TypeVar("AnyObject")
PATIENCE = 7 * 86400.0  # seconds that a collective waits while a watch says which rank hangs (train/ranks/watch.py)
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PLACES = {f"{of}_{what}" for of in ("LOCAL", "GROUP", "ROLE") for what in ("RANK", "WORLD_SIZE", "NAME")}


class FailedElsewhere(FastflowError):
    """Another rank was refused, and says why; this one ends with it, and says nothing."""

    silent = True
    on_all_ranks = True


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run. By default one alone, which asks nobody.

    rank: this process, from 0. count: of all. replicas: whole copies of the models among them, each cut over
    count / replicas ranks with successive numbers. Every method is a collective: all ranks call it, in the same order.
    """

    rank: int = 0
    count: int = 1
    replicas: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what the run leaves behind."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add the tensors of all ranks up; every rank gets the same bits."""
        if self.count == 1:
            return tensor
        PULSE.beat()
        total = tensor.clone().contiguous()
        dist.all_reduce(total)
        return total

    def max(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self.count == 1:
            return number
        PULSE.beat()
        largest = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return bool(self.max(int(flag)))

    def gather(self, value: AnyObject) -> list[AnyObject]:
        """Return the values of all ranks, in their order, on each."""
        if self.count == 1:
            return [value]
        PULSE.beat()
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: AnyObject) -> AnyObject:
        """Return the first rank's value on all."""
        if self.count == 1:
            return value
        PULSE.beat()
        held: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """End on all ranks where a rank is refused in the block, which holds no collective. Raises what that rank
        raised, and FailedElsewhere on the others.
        """
        failure: FastflowError | None = None
        try:
            yield
        except FastflowError as error:
            failure = error
        told = self.gather(None if failure is None else str(failure))
        speakers = [rank for rank, message in enumerate(told) if message is not None]
        if failure is not None and speakers[0] == self.rank:  # of several that fail alike, one speaks
            failure.on_all_ranks = True
            raise failure
        if speakers:
            raise FailedElsewhere(told[speakers[0]])

    def check_same(self, what: str, value: object) -> None:
        """Raise FastflowError on every rank where the ranks hold different values."""
        values = self.gather(value)
        if other := [rank for rank, one in enumerate(values) if one != values[0]]:
            raise FastflowError(
                f"rank {other[0]} has other {what} than rank 0; give all ranks the same files, settings and versions"
            )


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes torchrun started, 1 without it. Raises FastflowError for a broken environment."""
    text = environment.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise FastflowError(f"WORLD_SIZE = {text!r} is no number of processes; start the run by torchrun, or unset it")
    if int(text) > 1 and (missing := [name for name in LAUNCHED_BY if name not in environment]):
        raise FastflowError(f"WORLD_SIZE is {text}, but {missing[0]} is not set; start the run by torchrun")
    return int(text)


def alone(environment: MutableMapping[str, str]) -> None:
    """Take out of an environment what torchrun says in it: for a process that is no rank."""
    for name in list(environment):
        if name in LAUNCHED_BY or name in PLACES or name.startswith("TORCHELASTIC_"):
            del environment[name]


def visible_gpu(index: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return the CUDA_VISIBLE_DEVICES with which a process sees only the device that has this number here."""
    seen = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return seen[index] if index < len(seen) else str(index)


def local_rank() -> int:
    """Return the place of this process on its machine, which is the number of its device."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def join(*, on_cuda: bool, timeout: float) -> Ranks:
    """Meet the other ranks that torchrun started: over gloo, and tensors of a GPU over NCCL.

    timeout: seconds that a rank waits for the others, here and in each collective later. Raises FastflowError where
    they do not meet.
    """
    count = launched_ranks()
    if count == 1:
        return Ranks()
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):  # one machine: its host name may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        Ranks(dist.get_rank(), count).max(0)  # gloo connects at the first collective
    except (RuntimeError, ValueError) as error:
        raise FastflowError(
            f"rank {os.environ['RANK']} of {count} does not reach the others ({message_of(error)}); check MASTER_ADDR "
            "and MASTER_PORT, and set GLOO_SOCKET_IFNAME to the network interface that the machines share"
        ) from error
    return Ranks(dist.get_rank(), count)


def leave() -> None:
    """End the group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
