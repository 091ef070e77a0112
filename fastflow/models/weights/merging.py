"""Merges LoRA adapters into the weights that they adapt, measures what rounding the sum costs, and scales adapters.

A low-rank update is often smaller than the spacing of bfloat16 numbers around the weight that it changes. The rounded
sum then equals the old weight. `RoundingLoss` says how much of the update that loses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeGuard

import torch

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import whole

logger = logging.getLogger(__name__)

WORTH_A_WARNING = 0.05


class RoundingLoss:
    """Distance of rounded weights from exact ones: the norm of the error over the norm of the update, of all weights
    together. At 0 the rounding keeps the whole update, at 1 it loses all of it.
    """

    def __init__(self) -> None:
        self._error: list[torch.Tensor] = []
        self._update: list[torch.Tensor] = []

    def add(self, before: torch.Tensor, update: torch.Tensor, after: torch.Tensor) -> None:
        """Count one weight: before the update, and after it and rounded. Subtracts in the type of `update`."""
        error = after.to(update.dtype) - before.to(update.dtype) - update
        self._error.append(error.square_().sum(dtype=torch.float64))
        self._update.append(update.square().sum(dtype=torch.float64))

    @property
    def relative(self) -> float:
        """The loss so far; 0 while nothing was learned."""
        update = float(sum(self._update))
        return math.sqrt(float(sum(self._error)) / update) if update else 0.0


class AdaptedLayer(Protocol):
    """A linear layer with LoRA adapters by peft. Tables are by the adapter's name; r: rank."""

    base_layer: torch.nn.Linear
    active_adapters: list[str]
    lora_A: Mapping[str, torch.nn.Linear]  # in features -> r
    lora_B: Mapping[str, torch.nn.Linear]  # r -> out features
    r: Mapping[str, int]
    scaling: Mapping[str, float]
    fan_in_fan_out: bool


def adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """Yield the layers of a model that carry LoRA adapters, with their names. Raises FastflowError for adapters of
    experts, which peft itself makes and loads.
    """
    for name, layer in model.named_modules():
        if _is_adapted(layer):
            if hasattr(layer, "parameter_name"):
                raise FastflowError(
                    f"{name} has adapters of experts or of a router, which fastflow neither merges nor hands to vLLM; "
                    "take adapters of the attention alone"
                )
            yield name, layer


def _is_adapted(layer: object) -> TypeGuard[AdaptedLayer]:
    return hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight")


def weight_update(layer: AdaptedLayer, dtype: torch.dtype) -> torch.Tensor:
    """Compute what the active adapter adds to the weight of its layer: scale * B A, in `dtype`. A collective."""
    adapter = layer.active_adapters[0]
    down, up = (whole(side[adapter].weight).to(dtype) for side in (layer.lora_A, layer.lora_B))
    update = (up @ down) * layer.scaling[adapter]
    return update.T if layer.fan_in_fan_out else update


def merged_weight(layer: AdaptedLayer, dtype: torch.dtype, loss: RoundingLoss | None = None) -> torch.Tensor:
    """Add weight and update in float64, and round once. loss: counts what the rounding costs."""
    before = layer.base_layer.weight.detach()
    update = weight_update(layer, torch.float64)
    after = (before.double() + update).to(dtype)
    if loss is not None:
        loss.add(before, update, after)
    return after


class MergeWatch:
    """Warns once where a sampler gets merged weights whose rounding loses over 5 % of what was learned.

    remedy: what the user can do.
    """

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy
        self._has_warned = False

    def judge(self, loss: RoundingLoss, dtype: torch.dtype) -> None:
        """Judge the loss of all weights of a load. dtype: that of the sampler's weights."""
        if self._has_warned or loss.relative <= WORTH_A_WARNING:
            return
        self._has_warned = True
        logger.warning(
            "vLLM samples from merged weights in %s, and rounding loses %.3g %% of what the adapters have learned so "
            "far (relative error of the weight update). Until the adapters grow, the samples come from nearly the "
            "base, and the clipped importance weight corrects only a part of that; %s, or sample with "
            "--rollout.engine local",
            str(dtype).removeprefix("torch."), 100 * loss.relative, self._remedy,
        )  # fmt: skip


def scale_adapters(model: torch.nn.Module, scale: float) -> None:
    """Multiply what the adapters add to their layers: at 0 the model is its base, at 1 as it was trained. In place."""
    for _, layer in adapted_layers(model):
        for name in layer.scaling:
            layer.scaling[name] *= scale  # type: ignore[index]
