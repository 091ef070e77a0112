"""Cuts models over the ranks by PyTorch's FSDP2: each rank keeps a part of every weight, gradient and moment.

A decoder layer is gathered when it runs. Embedding, last norm and head are one group, that of the root, which is
gathered once for everything that runs inside `Root.forward`: so tied weights stay one tensor, and whoever reads the
head there finds the whole of it. Gradients are summed over the ranks, never averaged: the objective divides by the
trajectories of all ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from fastflow.models.ranks import Ranks

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from fastflow.models.packed import AdaptersOff, PackedModel

Result = TypeVar("Result")


class Root(nn.Module):
    """A model whose forward is any function that runs it. Tensors with gradient are returned by themselves or in a
    tuple, where FSDP finds them.

    skeleton: a copy of the model without memory for its weights, from before it was cut.
    """

    def __init__(self, model: PreTrainedModel | PeftModel):
        super().__init__()
        self.model = model
        # in a tuple, it is no part of this module
        self.skeleton: tuple[PreTrainedModel | PeftModel] = (_without_weights(model),)

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(*arguments)


def shard_models(policy: PackedModel, base: PackedModel | AdaptersOff, ranks: Ranks) -> None:
    """Cut policy and base over the ranks, in place; nothing happens where there is one. Call it after all that reads
    whole weights, and before the optimiser is made.
    """
    from fastflow.models.packed import PackedModel

    for model in (policy, base):
        if isinstance(model, PackedModel):
            shard(model, ranks)


def shard(model: PackedModel, ranks: Ranks) -> None:
    """Cut one model over the ranks, in place.

    Under autocast, layers are gathered and multiplied in bfloat16 and their gradients summed in float32. Embedding and
    head stay float32: the head's gradient is not rounded.
    """
    model.ranks = ranks
    if ranks.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(model.device.type, (ranks.count,))
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    root = Root(model.model)
    for layer in model.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=narrow if model.autocast else plain)
    fully_shard(root, mesh=mesh, mp_policy=plain, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    model.root = root


def run_inside(root: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function inside the root's forward, where embedding and head are whole."""
    result = root(function, *arguments)
    if not torch.is_grad_enabled():  # no backward pass cuts them again, and the optimiser would not reach them
        cast("Any", root).reshard()
    return result


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all ranks, which all call this in the same order."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor.detach() if gather is None else gather()


def part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a cut tensor, which shares its memory; every other tensor as it is."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


@torch.no_grad()
def copy_whole(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a whole tensor, which each rank has, into one that may be cut. No collective."""
    if (mesh := getattr(target, "device_mesh", None)) is not None:
        from torch.distributed.tensor import distribute_tensor

        placements = cast("Any", target).placements
        source = distribute_tensor(source.to(target.device), mesh, placements, src_data_rank=None)
    target.copy_(source)


def _without_weights(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Copy a model with parameters on the meta device and buffers in the host's memory."""
    copies: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, copies)
