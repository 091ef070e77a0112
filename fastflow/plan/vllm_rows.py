"""vLLM's memory beside the trainer's, row by row."""

from __future__ import annotations

import os

from fastflow.config import Config
from fastflow.plan.device import GIB, Device
from fastflow.plan.rows import ALWAYS, SAMPLING, Row, size
from fastflow.plan.sizes import ModelSizes
from fastflow.plan.trainer_rows import (
    cache_bytes_per_token,
    context_row,
    longest_sequence,
    parameter_bytes,
    sequences_at_once,
)

BUCKET_BYTES = 256 * 2**20
WORKSPACE_BYTES = GIB  # activations and CUDA graphs of vLLM, an assumption
CPU_CACHE_GIB = 1  # what the vLLM process is given unless VLLM_CPU_KVCACHE_SPACE says otherwise


def vllm_rows(config: Config, model: ModelSizes, device: Device) -> tuple[list[Row], list[str], list[str]]:
    """Rows, remarks, and obstacles that keep vLLM from starting at all, whatever is free."""
    each = 2 if config.model.autocast else parameter_bytes(config)
    weights = model.parameters * each
    share = int(config.rollout.memory_fraction * device.memory)
    cache = share - weights - WORKSPACE_BYTES if device.is_gpu else _cpu_cache()
    per_token, length = cache_bytes_per_token(model, each), longest_sequence(config) + 1
    sequences, wanted = max(cache, 0) // (per_token * length), sequences_at_once(config)

    sleeps = sleeps_while_training(config, device)
    moments = (SAMPLING,) if sleeps else ALWAYS
    rows = [Row("vLLM's weights", "vllm", weights, f"{model.parameters:,} x {each} B", moments)]
    if device.is_gpu:
        rows.append(Row("vLLM's workspace", "vllm", WORKSPACE_BYTES, "an assumption, not computed", moments))
    how = f"the rest of its share of {size(share)}" if device.is_gpu else "VLLM_CPU_KVCACHE_SPACE"
    held = f"{per_token:,} B a token, {sequences:,} sequences of {length:,} tokens"
    rows.append(Row("vLLM's KV cache", "vllm", max(cache, 0), f"{how}: {held}", moments))
    if sleeps and config.rollout.sleep == "weights-to-cpu":
        rows.append(Row("vLLM's weights on the host", "host", weights, "while the policy trains"))
    if config.lora.rank:
        bucket = min(BUCKET_BYTES, model.parameters * parameter_bytes(config))
        rows.append(Row("bucket of merged weights", "vllm", bucket, "at most 256 MiB at a time", (SAMPLING,)))
    rows.append(context_row("vllm", device))

    obstacles = []
    if sequences < 1:
        obstacles.append(
            f"vLLM would not start: its KV cache of {size(max(cache, 0))} cannot hold one sequence of {length:,} "
            f"tokens, which takes {size(per_token * length)}"
        )
    remarks = [f"{wanted:,} sequences at full length need {size(wanted * length * per_token)} of KV cache; "
               + (f"{sequences:,} fit, the others wait" if sequences < wanted else "all fit")]  # fmt: skip
    return rows, remarks, obstacles


def sleeps_while_training(config: Config, device: Device) -> bool:
    """Whether vLLM gives up its weights and cache on the GPU while the policy trains."""
    return device.is_gpu and not config.rollout.ahead and config.rollout.sleep != "off"


def _cpu_cache() -> int:
    configured = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    return int(configured) * GIB if configured.isdigit() else CPU_CACHE_GIB * GIB
