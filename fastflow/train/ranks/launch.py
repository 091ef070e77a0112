"""What a run on several ranks can do, and how it begins."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of
from fastflow.models.opening import resolve_device
from fastflow.models.ranks import Ranks, join, launched_ranks, local_rank

SHORTEST_TIMEOUT = 600.0  # seconds
WATCH_SECONDS = 1.0


def claim(config: Config, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return which rank torchrun started this process as. Raises FastflowError for what one rank only can do."""
    count = launched_ranks(environment)
    check_replicas(config, count)
    if count == 1:
        return Ranks()
    check_several_ranks(config, count)
    return Ranks(int(environment["RANK"]), count, config.run.replicas)


def longest_wait(config: Config) -> float:
    """Seconds that a rank waits for another whose engine starts, or hangs, as often as it may."""
    rollout = config.rollout
    return max(SHORTEST_TIMEOUT, rollout.startup + rollout.silence * (rollout.restarts + 1))


def meet(config: Config, ranks: Ranks, *, timeout: float) -> Config:
    """Meet the other ranks that torchrun started. Returns the settings of this one, with its device.

    timeout: see `join`. Raises FastflowError where they do not meet, or a rank has no device of its own. Where there is
    one rank, nothing happens.
    """
    if ranks.count == 1:
        return config
    device = resolve_device(config.model.device)
    if device.type == "cuda":
        import torch

        if local_rank() >= torch.cuda.device_count():
            raise FastflowError(
                f"rank {local_rank()} of this machine has no CUDA device of its own; there are "
                f"{torch.cuda.device_count()}: start as many ranks"
            )
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    join(on_cuda=device.type == "cuda", timeout=timeout)
    return replace(config, model=replace(config.model, device=str(device)))


def check_several_ranks(config: Config, count: int) -> None:
    """Raise FastflowError for settings that do not work on several ranks."""
    refused = [
        (config.model.compile != "off", f"model.compile = {config.model.compile}", "--model.compile off"),
        (":" in config.model.device, f"model.device = {config.model.device}", "--model.device cuda"),
    ]
    for holds, setting, remedy in refused:
        if holds:
            raise FastflowError(f"{setting} does not work on {count} ranks yet; use {remedy}, or one rank")


def check_replicas(config: Config, count: int) -> None:
    """Raise FastflowError where the ranks do not divide into run.replicas equal parts."""
    replicas = config.run.replicas
    if count % replicas:
        ranks = "one rank" if count == 1 else f"{count} ranks"
        raise FastflowError(
            f"run.replicas = {replicas} does not divide {ranks}; start a multiple of {replicas} ranks, or set "
            "--run.replicas 1"
        )


def check_devices(config: Config, count: int) -> None:
    """Raise FastflowError where this machine cannot give `count` ranks a device each."""
    if launched_ranks() > 1:
        raise FastflowError("--devices and torchrun both start ranks; leave one of them out")
    check_replicas(config, count)
    check_several_ranks(config, count)
    device = resolve_device(config.model.device)
    if device.type == "cuda":
        import torch

        if count > torch.cuda.device_count():
            raise FastflowError(
                f"--devices {count}, but this machine has {counted(torch.cuda.device_count(), 'CUDA device')}"
            )


def watch_launcher() -> None:
    """End this process soon after torchrun, should that be killed: nobody else would end it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="fastflow-launcher", daemon=True).start()


@contextlib.contextmanager
def naming_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Turn into one sentence that a collective failed, because another rank is gone, or that this rank has no memory
    left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        import torch.distributed as dist

        text = str(error)
        if ranks.count > 1 and (isinstance(error, MemoryError) or "DefaultCPUAllocator" in text):
            raise FastflowError(
                f"rank {ranks.rank} ran out of the machine's memory ({message_of(error)}); lower "
                "batch.tokens_per_microbatch or rollout.max_sequences, or set lora.rank, and start the run again with "
                "--resume"
            ) from error
        lost = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text or "Connection" in text
        if ranks.count == 1 or not lost:
            raise
        raise FastflowError(
            f"rank {ranks.rank} lost another rank, whose message tells why ({message_of(error)}); mend that, and "
            "start the run again with --resume"
        ) from error
