"""Hand LoRA adapters to vLLM, which applies them beside the unmerged weights: no bfloat16 merge rounds them away."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import whole
from fastflow.models.layers.experts import has_experts
from fastflow.models.layers.linear_attention import linear_attentions
from fastflow.models.packed import PackedModel
from fastflow.models.weights.merging import adapted_layers
from fastflow.rollout.vllm.refusals import RANKS, no_adapters


def rank_of(policy: PackedModel) -> int:
    """Return the largest rank of the adapters; 0 without adapters."""
    return max((layer.r[layer.active_adapters[0]] for _, layer in adapted_layers(policy.causal_lm)), default=0)


def targets_of(policy: PackedModel) -> tuple[str, ...]:
    """Return the last part of the name of each adapted layer."""
    return tuple(sorted({name.rpartition(".")[2] for name, _ in adapted_layers(policy.causal_lm)}))


def applies_adapters(policy: PackedModel, choice: str, engine_dtype: torch.dtype) -> bool:
    """Return whether vLLM applies the adapters itself.

    choice: rollout.adapters; `auto` applies them where a merge would be rounded to bfloat16. Raises FastflowError where
    `apply` asks for what vLLM cannot do: a higher rank, or adapters of a mixture of experts on a CPU.
    """
    if not rank_of(policy):
        return False
    refusal = _refusal(policy)
    if choice == "apply" and refusal:
        raise FastflowError(refusal)
    return applies(choice, rounded=engine_dtype == torch.bfloat16, able=not refusal)


def applies(choice: str, *, rounded: bool, able: bool) -> bool:
    """Return whether adapters are applied. rounded: a merge would be, to bfloat16. able: vLLM could apply them."""
    return able and (choice == "apply" or (choice == "auto" and rounded))


def remedy_of(policy: PackedModel) -> str:
    """What helps where a merge rounds the adapters away. vLLM computes linear attention on a CPU in bfloat16 alone."""
    if not _refusal(policy):
        return "set --rollout.adapters apply"
    if linear_attentions(policy.causal_lm):
        return "train all weights with --lora.rank 0"
    return "set --model.autocast false and --model.dtype float32"


def room_for(rank: int) -> int:
    """Return the smallest rank in RANKS that holds this one."""
    return next(room for room in RANKS if room >= rank)


def adapter_tensors(policy: PackedModel) -> dict[str, torch.Tensor]:
    """Copy the current adapters to the host, under peft's names. A collective."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in adapted_layers(policy.causal_lm):
        for side in ("lora_A", "lora_B"):
            weight = whole(getattr(layer, side)[layer.active_adapters[0]].weight)
            tensors[f"base_model.model.{name}.{side}.weight"] = weight.cpu().contiguous()
    return tensors


def write_adapters(policy: PackedModel, directory: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Write adapters in peft's format, which vLLM reads. tensors: of adapter_tensors. Returns the directory."""
    from safetensors.torch import save_file

    directory.mkdir()
    rank, alpha = 0, 0.0
    for _, layer in adapted_layers(policy.causal_lm):
        adapter = layer.active_adapters[0]
        rank = layer.r[adapter]
        alpha = layer.scaling[adapter] * rank
    save_file(adapter_tensors(policy) if tensors is None else tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets_of(policy),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def _refusal(policy: PackedModel) -> str:
    mixture = has_experts(policy.causal_lm.config)
    return no_adapters(rank_of(policy), policy.device.type, mixture=mixture)
