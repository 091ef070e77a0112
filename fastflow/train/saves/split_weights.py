"""Writes a mixture of experts under the hub's names, each weight of each expert from where it lies.

transformers' save_pretrained copies what it splits, all at once: two thirds of all experts, beside the model.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastflow.models.weights.expert_names import parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_split(model: PreTrainedModel, directory: Path) -> None:
    """Write configuration and weights, as save_pretrained does. Tied weights are written once."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

    directory.mkdir(parents=True, exist_ok=True)
    _write_configuration(model, directory)
    tensors = _split(model)
    shards = split_torch_state_dict_into_shards(tensors, filename_pattern="model{suffix}.safetensors")
    for file, names in shards.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_configuration(model: PreTrainedModel, directory: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)


def _split(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    weights: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        weights.setdefault(id(tensor), (name, tensor.detach()))
    return {
        part.name: part.of(tensor)
        for name, tensor in weights.values()
        for part in parts_of(model.config, name, tensor.shape)
    }
