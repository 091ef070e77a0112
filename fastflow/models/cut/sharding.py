"""Cuts models over the ranks by PyTorch's FSDP2: each rank keeps a part of every weight, gradient and moment.

A decoder layer is gathered when it runs. Embedding, last norm and head are one group, that of the root, which is
gathered once for everything that runs inside its forward: so tied weights stay one tensor, and whoever reads the head
there finds the whole of it. With model.head = cut, the head is not in that group (head.py). Gradients are summed
over the ranks, never averaged: the objective divides by the trajectories of all ranks.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from fastflow.config.model_sections import HeadPlace
from fastflow.errors import FastflowError
from fastflow.models.cut.embedding import CutEmbedding
from fastflow.models.cut.head import CUT, CutHead, is_tied
from fastflow.models.cut.parallel import Root
from fastflow.models.layers.embedding import is_known
from fastflow.models.layers.linear_attention import linear_attention_of
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import PATIENCE, Ranks
from fastflow.models.weights.filling import empty, fill, hold_unread_in_bfloat16

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def shard_models(
    policy: PackedModel, base: PackedModel | AdaptersOff | None, ranks: Ranks, *, head: HeadPlace = "gathered"
) -> None:
    """Cut policy and base, where there is one, over the ranks, in place; nothing happens where there is one rank. Call
    it after all that reads whole weights, and before the optimiser is made. head: model.head.
    """
    for model in (policy, base):
        if isinstance(model, PackedModel):
            shard(model, ranks, head=head)


def shard(model: PackedModel, ranks: Ranks, *, head: HeadPlace = "gathered") -> None:
    """Cut one model over the ranks, in place. Where its weights are still in their files, each rank reads its own rows.

    Under autocast, layers are gathered and multiplied in bfloat16 and their gradients summed in float32. Embedding and
    head stay float32: the head's gradient is not rounded. So does linear attention, for the rates of its state's decay.
    """
    model.ranks = ranks
    if ranks.count == 1:
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = mesh_of(ranks, model.device)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    unread = model.unread
    if unread is not None and isinstance(model, FrozenModel) and model.autocast:
        hold_unread_in_bfloat16(model.model, unread, ranks)
    root, device = Root(model.model), model.device
    places = {} if unread is None else empty(root, unread)
    for layer in model.causal_lm.get_decoder().layers:
        layer.register_forward_pre_hook(_beat)
        if (mixer := linear_attention_of(layer)) is not None:  # a bfloat16 rate of decay is another model
            fully_shard(mixer, mesh=mesh, mp_policy=plain)
        fully_shard(layer, mesh=mesh, mp_policy=narrow if model.autocast else plain)
        PULSE.work()
    if head == CUT:
        model.cut_head = cut_head_of(model.causal_lm, mesh)
    apart = model.cut_head.parameters if model.cut_head else None
    fully_shard(root, mesh=mesh, mp_policy=plain, reshard_after_forward=False, ignored_params=apart)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    if unread is not None:
        fill(root, places, unread, device, ranks)
        model.unread = None
    model.root = root


def cut_head_of(model: PreTrainedModel, mesh: DeviceMesh) -> CutHead:
    """Cut the head of a model for good, and its embedding with it where that is the same weight. Raises FastflowError
    for an embedding of unknown code.
    """
    embedding, has_one_weight = model.get_input_embeddings(), is_tied(model)
    if has_one_weight and not is_known(embedding):
        raise FastflowError(
            f"model.head = cut would look up rows of {type(embedding).__name__}, whose code may compute more than rows "
            "of its weight; use --model.head gathered"
        )
    head = CutHead(model.get_output_embeddings(), mesh)
    if has_one_weight:
        model.set_input_embeddings(CutEmbedding(embedding, head))
    return head


def mesh_of(ranks: Ranks, device: torch.device) -> DeviceMesh:
    """Return the ranks as FSDP2 takes them: in one row, or in a row for each replica. Then weights are gathered in a
    row, and gradients are summed in a row and after that over the rows.
    """
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if ranks.replicas == 1:
        return init_device_mesh(device.type, (ranks.count,))
    rows = torch.arange(ranks.count).view(ranks.replicas, -1)
    groups = [_own_group(parts.tolist()) for parts in (rows.T, rows)]
    return DeviceMesh.from_group(groups, device.type, rows, mesh_dim_names=("replicate", "shard"))


def _own_group(parts: list[list[int]]) -> dist.ProcessGroup:
    """Divide the ranks into groups, and return this rank's. A mesh that makes its own waits for ten minutes only."""
    timeout = datetime.timedelta(seconds=PATIENCE)
    return dist.new_subgroups_by_enumeration(parts, timeout=timeout)[0]


def _beat(_: nn.Module, inputs: tuple[object, ...]) -> None:
    """Count a layer that begins to run, forward now and backward later."""
    PULSE.beat()
    for one in inputs:
        if isinstance(one, torch.Tensor) and one.requires_grad:
            one.register_hook(PULSE.beat)
