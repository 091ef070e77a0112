"""Builds a model whose weights stay in their files: one number stands in the place of each, until it is cut.

What is made of a model before it is cut (adapters, fused and checkpointed layers, its frozen twin) sees a device, a
type and a shape, as of loaded weights. filling.py then reads, on each rank, the rows that this rank keeps.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastflow.config.schema import ModelConfig
from fastflow.models.layers.experts import has_experts
from fastflow.models.weights.expert_names import join_experts
from fastflow.models.weights.files import check_names, check_tie
from fastflow.models.weights.loading import FAMILIES, load_causal_lm, loading, read_config, read_generation
from fastflow.models.weights.stored import OtherFiles, Reader, StoredWeight, find_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

BESIDE_IMAGES = "model.language_model."  # how names of a text model's weights begin where there is one for images, too


@dataclass
class Unread:
    """Where the weights of a hollow model are. places: by parameter, of which tied ones are one."""

    path: str
    places: dict[nn.Parameter, StoredWeight]
    reader: Reader = field(default_factory=Reader)

    def first_rows(self) -> list[tuple[str, torch.Tensor]]:
        """Read the first row of each weight, by its name: enough to tell the files of two models apart. Raises
        FastflowError for a file that cannot be read.
        """
        with loading(self.path, "model"), self.reader.closing() as reader:
            return [(stored.name, reader.rows(stored, 0, 1)) for stored in self.places.values()]


def open_causal_lm(path: str, settings: ModelConfig, device: torch.device) -> tuple[PreTrainedModel, Unread | None]:
    """Build a causal LM on a device with its weights left in their files.

    Where they cannot stay there, the model is loaded whole into the host's memory, a line says why, and there is no
    Unread. Raises FastflowError as load_causal_lm does.
    """
    config = read_config(path, trust_remote_code=settings.trust_remote_code)
    try:
        return _build(path, config, settings, device)
    except OtherFiles as why:
        logger.warning("every rank loads %s whole before it keeps its part: %s", path, why)
        return load_causal_lm(path, settings), None


def _build(
    path: str, config: PretrainedConfig, settings: ModelConfig, device: torch.device
) -> tuple[PreTrainedModel, Unread]:
    from transformers import AutoModelForCausalLM

    own_code = settings.trust_remote_code and getattr(config, "auto_map", None)
    if config.model_type not in FAMILIES or own_code:
        raise OtherFiles("its code is its own")
    if getattr(config, "transformers_weights", None):
        raise OtherFiles("its config.json names the file of its weights")
    found = find_weights(path)
    if has_experts(config):
        found = join_experts(found, config.num_experts)
    with loading(path, "model"), torch.device("meta"), _NumbersOnTheHost():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
    model.tie_weights()
    found = _of_text_model(found, model)
    places = {parameter: _place(found, name, parameter) for name, parameter in model.named_parameters()}
    _check_leftovers(path, model, found)
    places = _give_one_number(model, places, device)
    _make_buffers(model)
    with loading(path, "model"):
        model.generation_config = read_generation(path)
    model.config.name_or_path = path
    return model.eval(), Unread(path, places)


def _of_text_model(found: dict[str, StoredWeight], model: PreTrainedModel) -> dict[str, StoredWeight]:
    """Name the weights as the text model does, where their files also hold one for images; leave out what is its."""
    others = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {
        name.replace(BESIDE_IMAGES, "model.", 1) if name.startswith(BESIDE_IMAGES) else name: stored
        for name, stored in found.items()
        if not any(re.search(pattern, name) for pattern in others)
    }


def _place(found: dict[str, StoredWeight], name: str, parameter: nn.Parameter) -> StoredWeight:
    stored = found.get(name)
    if stored is None:
        raise OtherFiles(f"its files have no {name}")
    if stored.shape != tuple(parameter.shape):
        raise OtherFiles(f"{name} has the shape {stored.shape} in its file, not {tuple(parameter.shape)}")
    return stored


def _check_leftovers(path: str, model: PreTrainedModel, found: dict[str, StoredWeight]) -> None:
    """Check the weights of the files that the model has no place for, as load_causal_lm does."""
    unexpected = found.keys() - model.state_dict().keys()
    check_names(path, unexpected)
    check_tie(path, model.config, missing=())
    if strange := sorted(name for name in unexpected if not name.endswith(".rotary_emb.inv_freq")):  # of old releases
        logger.warning(
            "%s has %d weights that its model has no place for (first: %s); they are not used",
            path, len(strange), strange[0],
        )  # fmt: skip


def _give_one_number(
    model: PreTrainedModel, places: dict[nn.Parameter, StoredWeight], device: torch.device
) -> dict[nn.Parameter, StoredWeight]:
    """Put, in the place of each weight on the meta device, one number that looks as large. Returns their places."""
    hollow = {
        parameter: nn.Parameter(hollow_tensor(parameter, parameter.dtype, device), parameter.requires_grad)
        for parameter in places
    }
    exchange(model, hollow)
    return {hollow[parameter]: stored for parameter, stored in places.items()}


def hollow_tensor(like: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros of the shape of `like` in the memory of one."""
    return torch.zeros((), dtype=dtype, device=device).expand(like.shape)


def exchange(model: nn.Module, others: dict[nn.Parameter, nn.Parameter]) -> None:
    """Put other parameters into the places of these, in place; tied ones stay tied."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in others:
                setattr(module, name, others[parameter])


class _NumbersOnTheHost(TorchFunctionMode):
    """Keeps single numbers off the meta device, as the factor of Gemma's embedding: a buffer that no file holds."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is torch.tensor and isinstance(args[0] if args else None, (int, float)):
            options = {"device": "cpu", **options}
        return function(*args, **options)


def _make_buffers(model: PreTrainedModel) -> None:
    """Compute buffers, which no file holds. Beside single numbers, only rotary embeddings have any in these
    families.
    """
    for name, module in list(model.named_modules()):
        own = [buffer for buffer in module.buffers(recurse=False) if buffer.is_meta]
        if not own:
            continue
        if not name.endswith("rotary_emb") or next(module.parameters(), None) is not None:
            raise OtherFiles(f"its {name} has buffers that no file holds")
        model.set_submodule(name, type(module)(model.config))
