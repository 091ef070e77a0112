"""How a model that is cut over the ranks is run, and how its tensors are put together and taken apart.

sharding.py cuts it. What runs inside `Root.forward` finds embedding and head whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from fastflow.models.pulse import PULSE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

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
    if gather is None:
        return tensor.detach()
    PULSE.beat()
    return gather()


def part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a cut tensor, which shares its memory; every other tensor as it is."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def rows_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the rows of the whole that this rank's part of a tensor holds: from the first up to the second. FSDP cuts
    along the first dimension, and the last ranks may have fewer rows or none.
    """
    if (mesh := getattr(tensor, "device_mesh", None)) is None:
        return 0, len(tensor)
    start, stop = 0, len(tensor)
    for dimension, placement in enumerate(cast("Any", tensor).placements):
        if placement.is_replicate():
            continue
        if not placement.is_shard(0):
            raise ValueError(f"a tensor is cut by {placement}, not along its first dimension")
        share = -(-(stop - start) // mesh.size(dimension))
        start = min(start + mesh.get_local_rank(dimension) * share, stop)
        stop = min(start + share, stop)
    return start, stop


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
