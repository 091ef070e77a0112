"""LoRA adapters that vLLM applies itself, beside unmerged weights: what a bfloat16 merge rounds away reaches it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastflow.errors import FastflowError
from fastflow.models.merging import adapted_layers
from fastflow.models.packed import PackedModel

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for


def rank_of(policy: PackedModel) -> int:
    """The adapters' rank; 0 without adapters."""
    return max((layer.r[layer.active_adapters[0]] for _, layer in adapted_layers(policy.causal_lm)), default=0)


def targets_of(policy: PackedModel) -> tuple[str, ...]:
    """The last part of the name of every adapted layer."""
    return tuple(sorted({name.rpartition(".")[2] for name, _ in adapted_layers(policy.causal_lm)}))


def applies_adapters(policy: PackedModel, choice: str, engine_dtype: torch.dtype) -> bool:
    """Whether vLLM applies the adapters itself. choice: rollout.adapters; `auto` does so where a merge is rounded to
    bfloat16. Raises FastflowError where vLLM cannot and has to.
    """
    rank = rank_of(policy)
    if not rank or choice == "merge":
        return False
    if choice == "apply" and rank > RANKS[-1]:
        raise FastflowError(
            f"lora.rank = {rank} is more than the {RANKS[-1]} that vLLM can apply; set --rollout.adapters merge"
        )
    return choice == "apply" or (engine_dtype == torch.bfloat16 and rank <= RANKS[-1])


def room_for(rank: int) -> int:
    """The smallest rank that vLLM can make room for and that holds this one."""
    return next(room for room in RANKS if room >= rank)


def write_adapters(policy: PackedModel, directory: Path) -> Path:
    """The adapters of now as the directory that vLLM reads, in peft's format."""
    from safetensors.torch import save_file

    directory.mkdir()
    tensors, layer, adapter = {}, None, ""
    for name, layer in adapted_layers(policy.causal_lm):
        adapter = layer.active_adapters[0]
        for side in ("lora_A", "lora_B"):
            weight = getattr(layer, side)[adapter].weight.detach()
            tensors[f"base_model.model.{name}.{side}.weight"] = weight.cpu().contiguous()
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": layer.r[adapter],
        "lora_alpha": layer.scaling[adapter] * layer.r[adapter],
        "target_modules": targets_of(policy),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
