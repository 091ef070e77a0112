"""Cuts models over the ranks by PyTorch's FSDP2: each rank keeps a part of every weight, gradient and moment.

A decoder layer is gathered when it runs. Embedding, last norm and head are one group, that of the root, which is
gathered once for everything that runs inside its forward: so tied weights stay one tensor, and whoever reads the head
there finds the whole of it. Gradients are summed over the ranks, never averaged: the objective divides by the
trajectories of all ranks.
"""

from __future__ import annotations

import torch
from torch import nn

from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.parallel import Root
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks


def shard_models(policy: PackedModel, base: PackedModel | AdaptersOff | None, ranks: Ranks) -> None:
    """Cut policy and base, where there is one, over the ranks, in place; nothing happens where there is one rank. Call
    it after all that reads whole weights, and before the optimiser is made.
    """
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
        layer.register_forward_pre_hook(_beat)
        fully_shard(layer, mesh=mesh, mp_policy=narrow if model.autocast else plain)
        PULSE.work()
    fully_shard(root, mesh=mesh, mp_policy=plain, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    model.root = root


def _beat(_: nn.Module, inputs: tuple[object, ...]) -> None:
    """Count a layer that begins to run, forward now and backward later."""
    PULSE.beat()
    for one in inputs:
        if isinstance(one, torch.Tensor) and one.requires_grad:
            one.register_hook(PULSE.beat)
