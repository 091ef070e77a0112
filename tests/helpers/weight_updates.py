"""What a LoRA run has learned, from its adapter files and its model's alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def updates(adapter: Path) -> dict[str, torch.Tensor]:
    """scale * B A in float64, by the name of the weight that it is for."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for name, up in tensors.items():
        if name.endswith(".lora_B.weight"):
            down = tensors[name.replace("lora_B", "lora_A")]
            weight = name.removeprefix("base_model.model.").replace(".lora_B", "")
            found[weight] = scale * (up.double() @ down.double())
    return found


def relative_error(exported: Path, model: Path, adapter: Path) -> float:
    """Of the weight update in the exported policy: the norm of the error over the norm of the update."""
    before, after = load_file(model / "model.safetensors"), load_file(exported / "model.safetensors")
    error = update = 0.0
    for name, expected in updates(adapter).items():
        error += float((after[name].double() - before[name].double() - expected).square().sum())
        update += float(expected.square().sum())
    return (error / update) ** 0.5
