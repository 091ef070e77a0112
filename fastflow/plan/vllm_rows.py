"""Count vLLM's memory beside the trainer's, row by row."""

from __future__ import annotations

import os

from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.plan.device import GIB, Device
from fastflow.plan.lengths import most
from fastflow.plan.rows import ALWAYS, SAMPLING, TRAINING, Row
from fastflow.plan.sizes import Adapters, ModelSizes
from fastflow.plan.trainer_rows import cache_bytes_per_token, context_row, parameter_bytes, state_bytes
from fastflow.rollout.vllm.adapters import applies, room_for
from fastflow.rollout.vllm.refusals import another_gpu, no_adapters, no_sleep
from fastflow.rollout.vllm.weights import BUCKET_BYTES

WORKSPACE_BYTES = GIB  # activations and CUDA graphs of vLLM, an assumption
CPU_CACHE_GIB = 1  # of the vLLM process, unless VLLM_CPU_KVCACHE_SPACE sets another


def vllm_rows(
    config: Config, model: ModelSizes, adapters: Adapters | None, device: Device
) -> tuple[list[Row], list[str], list[str]]:
    """Return rows, remarks, and obstacles: what keeps vLLM from starting even with enough memory."""
    each = 2 if config.model.autocast else parameter_bytes(config)
    weights = model.parameters * each
    share = int(config.rollout.memory_fraction * device.memory)
    cache = share - weights - WORKSPACE_BYTES if device.is_gpu else _cpu_cache()
    longest = most(config, device.count, lambda sampled: sampled.length)
    per_token, length = cache_bytes_per_token(model, each), longest.length
    state = state_bytes(model, each)
    whole = per_token * length + state  # of one sequence
    sequences, wanted = max(cache, 0) // whole, longest.sequences

    sleeps = sleeps_while_training(config, device)
    moments = (SAMPLING,) if sleeps else ALWAYS
    rows = [Row("vLLM's weights", "vllm", weights, f"{model.parameters:,} x {each} B", moments)]
    if device.is_gpu:
        rows.append(Row("vLLM's workspace", "vllm", WORKSPACE_BYTES, "an assumption, not computed", moments))
    how = f"the rest of its share of {sized(share)}" if device.is_gpu else "VLLM_CPU_KVCACHE_SPACE"
    beside = f" and {state:,} B a sequence" if state else ""
    held = f"{per_token:,} B a token{beside}, {sequences:,} sequences of {length:,} tokens"
    rows.append(Row("vLLM's KV cache", "vllm", max(cache, 0), f"{how}: {held}", moments))
    if sleeps and config.rollout.sleep == "weights-to-cpu":
        rows.append(Row("vLLM's weights on the host", "host", weights, "while the policy trains", TRAINING))
    if adapters is not None and _applies_adapters(config, model, device.type):
        reserved = adapters.parameters * each * room_for(config.lora.rank) // config.lora.rank
        rows.append(Row("vLLM's adapters", "vllm", reserved, "which it applies itself: rollout.adapters", moments))
    elif adapters is not None and device.count == 1:
        how = "at most 256 MiB, or one weight, at a time; kept for the whole run"
        rows.append(Row("bucket of merged weights", "vllm", _bucket_bytes(config, adapters), how))
    if device.count > 1:
        how = "at most 256 MiB, or one weight, at a time; kept for the whole run"
        rows.append(
            Row("bucket of gathered weights", "vllm", _gathered_bytes(config, model, adapters, device.type), how)
        )
        largest = model.largest * parameter_bytes(config)
        rows.append(Row("one weight, gathered", "trainer", largest, "the largest", (SAMPLING,)))
    rows.append(context_row("vllm", device))

    obstacles = _refusals(config, model, device)
    if sequences < 1:
        remedy = "raise rollout.memory_fraction" if device.is_gpu else "set VLLM_CPU_KVCACHE_SPACE to more GiB"
        obstacles.append(
            f"vLLM would not start: its KV cache of {sized(max(cache, 0))} cannot hold one sequence of {length:,} "
            f"tokens, which takes {sized(whole)}; {remedy}, or lower {longest.setting}"
        )
    full = sized(wanted * whole)
    remarks = [f"{wanted:,} sequences at full length{longest.note} need {full} of KV cache; "
               + (f"{sequences:,} fit, the others wait" if sequences < wanted else "all fit")]  # fmt: skip
    return rows, remarks, obstacles


def shared_bytes(config: Config, model: ModelSizes, adapters: Adapters | None, ranks: int = 1) -> int:
    """Return the bytes in shared memory on a CPU: all parameters, or the plain ones and a bucket of merged ones; where
    the policy is cut over several ranks of a machine, a bucket for each.
    """
    if ranks > 1:
        return ranks * _gathered_bytes(config, model, adapters, "cpu")
    if adapters is None or _applies_adapters(config, model, "cpu"):
        return model.parameters * parameter_bytes(config)
    return adapters.plain * parameter_bytes(config) + _bucket_bytes(config, adapters)


def _applies_adapters(config: Config, model: ModelSizes, device: str) -> bool:
    is_rounded = config.model.autocast or config.model.dtype == "bfloat16"
    return applies(config.rollout.adapters, rounded=is_rounded, able=not _no_adapters(config, model, device))


def _no_adapters(config: Config, model: ModelSizes, device: str) -> str:
    return no_adapters(config.lora.rank, device, mixture=model.experts > 0)


def _bucket_bytes(config: Config, adapters: Adapters) -> int:
    each = parameter_bytes(config)
    return max(min(BUCKET_BYTES, adapters.adapted * each), adapters.largest * each)


def _gathered_bytes(config: Config, model: ModelSizes, adapters: Adapters | None, device: str) -> int:
    each = parameter_bytes(config)
    most = model.parameters
    if adapters is not None and not _applies_adapters(config, model, device):
        most = max(adapters.plain, adapters.adapted)  # a bucket holds either what changes or what does not
    return max(min(BUCKET_BYTES, most * each), model.largest * each)


def _refusals(config: Config, model: ModelSizes, device: Device) -> list[str]:
    """Return what the sampler refuses before it starts vLLM."""
    kind, _, index = config.model.device.partition(":")
    found = [no_sleep(config.rollout.sleep, device.type), another_gpu(kind, int(index) if index.isdigit() else None)]
    if config.lora.rank and config.rollout.adapters == "apply":
        found.append(_no_adapters(config, model, device.type))
    return list(filter(None, found))


def sleeps_while_training(config: Config, device: Device) -> bool:
    """Return whether vLLM frees its weights and cache on the GPU while the policy trains."""
    return device.is_gpu and not config.rollout.ahead and config.rollout.sleep != "off"


def _cpu_cache() -> int:
    configured = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    return int(configured) * GIB if configured.isdigit() else CPU_CACHE_GIB * GIB
