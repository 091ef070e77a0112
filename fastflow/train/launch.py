"""What a run on several ranks can do, and how it begins."""

from __future__ import annotations

from dataclasses import replace

from fastflow.config.schema import Config
from fastflow.errors import FastflowError
from fastflow.models.packed import resolve_device
from fastflow.models.ranks import Ranks, join, launched_ranks, local_rank

SHORTEST_TIMEOUT = 600.0  # seconds


def meet(config: Config) -> tuple[Config, Ranks]:
    """Meet the other ranks that torchrun started. Returns the settings of this one, with its device.

    Raises FastflowError for what one rank only can do. Where there is one rank, nothing happens.
    """
    count = launched_ranks()
    if count == 1:
        return config, Ranks()
    check_several_ranks(config, count)
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
    rollout = config.rollout
    waits = rollout.startup + rollout.silence * (rollout.restarts + 1)  # of others, for a rank whose engine hangs
    ranks = join(on_cuda=device.type == "cuda", timeout=max(SHORTEST_TIMEOUT, waits))
    return replace(config, model=replace(config.model, device=str(device))), ranks


def check_several_ranks(config: Config, count: int) -> None:
    """Raise FastflowError for settings that do not work on several ranks."""
    refused = [
        (config.rollout.engine != "local", f"rollout.engine = {config.rollout.engine}", "--rollout.engine local"),
        (config.model.compile != "off", f"model.compile = {config.model.compile}", "--model.compile off"),
        (":" in config.model.device, f"model.device = {config.model.device}", "--model.device cuda"),
    ]
    for holds, setting, remedy in refused:
        if holds:
            raise FastflowError(f"{setting} does not work on {count} ranks yet; use {remedy}, or one rank")
