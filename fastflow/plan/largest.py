"""Find the largest model of the same widths that fits: the one with most layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastflow.config.schema import Config
from fastflow.plan.device import Device
from fastflow.plan.estimate import Sizes, estimate_sizes
from fastflow.plan.rank_rows import layer_parameters, outer_parameters
from fastflow.plan.sizes import Adapters, ModelSizes

MOST_LAYERS = 1024


@dataclass(frozen=True)
class Largest:
    """layers: 0 where not even one fits. parameters: of the policy with so many."""

    layers: int
    parameters: int

    def __str__(self) -> str:
        if not self.layers:
            return "no model of these widths fits, however few layers it has"
        more = " or more" if self.layers == MOST_LAYERS else ""
        what = f"{self.layers} layers{more}, {self.parameters:,} parameters"
        return f"the largest model of these widths that fits has {what}"


def largest(config: Config, sizes: Sizes, device: Device) -> Largest | None:
    """Return the most layers with which the run fits, of models that differ in nothing else.

    None where it is not the memory that stops the run.
    """
    smallest = estimate_sizes(config, with_layers(sizes, 1), device)
    if smallest.obstacles and not smallest.shortfall:
        return None
    least, most = 0, MOST_LAYERS
    while least < most:
        middle = (least + most + 1) // 2
        if estimate_sizes(config, with_layers(sizes, middle), device).fits:
            least = middle
        else:
            most = middle - 1
    return Largest(least, with_layers(sizes, least).model.parameters)


def with_layers(sizes: Sizes, layers: int) -> Sizes:
    """Return the same models with another number of layers."""
    model = sizes.model
    base = None if sizes.base is None else _stretched(sizes.base, layers)
    adapters = None if sizes.adapters is None else _adapters(sizes.adapters, model, layers)
    return Sizes(_stretched(model, layers), base, adapters)


def _stretched(model: ModelSizes, layers: int) -> ModelSizes:
    outer, before = outer_parameters(model), model.layers
    linear, experts = (count // before * layers for count in (model.body_linear, model.expert_weights))
    per_layer = layer_parameters(model)
    ends = model.matrices - model.body_linear
    outer_tensors = 2 if model.tied else 3
    tensors = outer_tensors + (model.tensors - outer_tensors) // before * layers
    return replace(
        model, layers=layers, parameters=outer + per_layer * layers, tensors=tensors, body_linear=linear,
        matrices=ends + linear, expert_weights=experts, attending=-(-model.attending * layers // before),
        state=model.state * layers // before, convolved=model.convolved * layers // before,
    )  # fmt: skip


def _adapters(adapters: Adapters, model: ModelSizes, layers: int) -> Adapters:
    outer, before = outer_parameters(model), model.layers
    return replace(
        adapters,
        parameters=adapters.parameters // before * layers,
        tensors=adapters.tensors // before * layers,
        adapted=adapters.adapted // before * layers,
        plain=outer + (adapters.plain - outer) // before * layers,
    )
