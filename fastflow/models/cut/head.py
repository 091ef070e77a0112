"""A head that stays cut over the ranks along the vocabulary: each keeps some of its rows, and nobody gathers it.

In its place the response rows travel: each rank gathers those of all ranks, multiplies them by its rows of the head,
and the ranks add up what each row needs of all (fastflow_kernels.VocabularyShard). So the head's gradient is complete
where its rows are, and is not reduced. Callers see their own rows only, in and out.

With replicas, all of this happens inside each of them: "all ranks" are those of one replica. What each of them finds
for its rows of the head is then summed over the replicas.

The rows are a DTensor beside FSDP's, cut as FSDP cuts: norms, the optimiser and saves find no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import part
from fastflow.models.cut.rows import OwnPart, RowsOfRanks, SummedGradient
from fastflow.models.pulse import PULSE
from fastflow_kernels import FlowLoss, TokenStatistics, VocabularyShard, flow_loss, linear_logprob
from fastflow_kernels.sampling import head_logits

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

CUT = "cut"  # of model.head


class CutHead:
    """The rows [start, start + V_r) of a head on this rank, of V in all.

    Each method is a collective: all ranks call it together, with any number of rows of their own. Cuts the weight of
    `head`, and its bias where there is one, in place. mesh: of all ranks, in one dimension, or in two, of which the
    first numbers the replicas.
    """

    def __init__(self, head: nn.Module, mesh: DeviceMesh):
        self._head = head
        self._replicas = mesh.get_group(0) if mesh.ndim == 2 else None  # the ranks that have the same rows
        vocabulary, self._rank = len(head.get_parameter("weight")), mesh.get_local_rank(mesh.ndim - 1)
        self.sizes = rows_of_each(vocabulary, mesh.size(mesh.ndim - 1))  # V_r of every rank
        start = sum(self.sizes[: self._rank])
        for name, parameter in list(head.named_parameters(recurse=False)):
            head.register_parameter(name, _cut(parameter, slice(start, start + self.sizes[self._rank]), mesh))
        group = _all_ranks() if self._replicas is None else mesh.get_group(1)
        self.shard = VocabularyShard(start, group, largest=max(self.sizes))

    @property
    def parameters(self) -> set[nn.Parameter]:
        """What FSDP leaves alone."""
        return set(self._head.parameters(recurse=False))

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the optimiser and saves see it."""
        return self._head.get_parameter("weight")

    @property
    def weight(self) -> Float[Tensor, "V_r D"]:
        """This rank's rows, whose gradient reaches the parameter."""
        return self.own(self.parameter)

    @property
    def bias(self) -> Float[Tensor, " V_r"] | None:
        bias = getattr(self._head, "bias", None)
        return None if bias is None else self.own(bias)

    def logprobs(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> Float32[Tensor, " N"]:
        """Compute the log-probs of this rank's targets, nats, with gradient."""
        rows, every, all_targets = self._gathered(hidden, targets)
        return rows.own(linear_logprob(every, self.weight, all_targets, bias=self.bias, shard=self.shard))

    def statistics(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> TokenStatistics:
        """Compute entropy, logsumexp and mean logit of this rank's rows; the first two with gradient."""
        rows, every, all_targets = self._gathered(hidden, targets)
        _, found = linear_logprob(every, self.weight, all_targets, bias=self.bias, shard=self.shard, statistics=True)
        return TokenStatistics(*(rows.own(values) for values in found))

    def flow_loss(
        self,
        hidden: Float[Tensor, "N D"],
        targets: Int64[Tensor, " N"],
        cu_seqlens: Tensor,  # (S+1,) of int32, on the host
        *,
        log_z: Float[Tensor, " S"],
        log_target: Float[Tensor, " S"],
        length_scale: Float[Tensor, " S"],
        behaviour_logprob: Float[Tensor, " S"],
        clip_low: float,
        clip_high: float,
        ratio: str,
        normaliser: float,
    ) -> FlowLoss:
        """Compute `fastflow_kernels.flow_loss` of this rank's sequences. All ranks backpropagate it together, and those
        that have rows by the same number.
        """
        rows, sequences = RowsOfRanks.ask(len(hidden), len(cu_seqlens) - 1, shard=self.shard)
        terms = torch.stack([one.double() for one in (log_z, log_target, length_scale, behaviour_logprob)], dim=1)
        all_terms = sequences.gather(terms)
        constants = all_terms.detach()  # but for log_z
        output = flow_loss(
            rows.gather(hidden),
            self.weight,
            rows.together(targets),
            sequences.offsets(cu_seqlens),
            log_z=all_terms[:, 0],
            log_target=constants[:, 1],
            length_scale=constants[:, 2],
            behaviour_logprob=constants[:, 3],
            clip_low=clip_low,
            clip_high=clip_high,
            ratio=ratio,
            normaliser=normaliser,
            bias=self.bias,
            shard=self.shard,
        )
        own, place = {name: getattr(output, name)[sequences.place] for name in _PER_SEQUENCE}, rows.place
        loss = (own["importance"].double() * own["residual"].double().square()).sum() / normaliser
        return FlowLoss(
            OwnPart.apply(output.loss, loss.to(output.loss.dtype), rows),
            **own,
            token_logprob=output.token_logprob[place],
        )

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "N D"]) -> Float32[Tensor, "N V"]:
        """Compute the logits of this rank's rows: each rank computes those of its part of the vocabulary, and hands
        them to the rank that has the row.
        """
        (rows,) = RowsOfRanks.ask(len(hidden), shard=self.shard)
        columns = head_logits(rows.together(hidden), self.weight, self.bias)  # (all N, V_r)
        mine, width = len(hidden), columns.shape[1]
        found = columns.new_empty(mine * sum(self.sizes))
        PULSE.beat()
        dist.all_to_all_single(
            found,
            columns.flatten(),
            [mine * size for size in self.sizes],
            [count * width for count in rows.counts],
            group=self.shard.group,
        )
        parts = found.split([mine * size for size in self.sizes])
        return torch.cat([one.view(mine, size) for one, size in zip(parts, self.sizes, strict=True)], dim=1)

    def own(self, parameter: Tensor) -> Tensor:
        """Return this rank's rows of a parameter, whose gradient is summed over the replicas where there are any."""
        own = part(parameter)
        return own if self._replicas is None else SummedGradient.apply(own, self._replicas)

    def _gathered(
        self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]
    ) -> tuple[RowsOfRanks, Tensor, Tensor]:
        (rows,) = RowsOfRanks.ask(len(hidden), shard=self.shard)
        return rows, rows.gather(hidden), rows.together(targets)


def rows_of_each(vocabulary: int, ranks: int) -> list[int]:
    """Cut V rows over the ranks as FSDP does: all have as many, but those at the end fewer or none."""
    most = -(-vocabulary // ranks)
    return [min(most, max(vocabulary - most * rank, 0)) for rank in range(ranks)]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head is the embedding."""
    return model.get_output_embeddings().get_parameter("weight") is model.get_input_embeddings().get_parameter("weight")


def check_rows(path: str, vocabulary: int, ranks: int) -> None:
    """Raise FastflowError where a head of V rows gives some rank no row. ranks: of one replica."""
    if not all(rows_of_each(vocabulary, ranks)):
        raise FastflowError(
            f"model.head = cut gives {-(-vocabulary // ranks)} of the {vocabulary} rows in the head of {path} to a "
            f"rank, so that none are left for the last of {ranks} ranks; use --model.head gathered, or fewer ranks"
        )


_PER_SEQUENCE = ("logprob", "residual", "importance", "raw_ratio")


def _all_ranks() -> dist.ProcessGroup:
    """The group in which tensors of the host travel, too."""
    return cast("dist.ProcessGroup", dist.group.WORLD)


def _cut(parameter: nn.Parameter, rows: slice, mesh: DeviceMesh) -> nn.Parameter:
    """Keep a copy of some rows; the others' memory can go."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    own, places = parameter.detach()[rows].clone(), [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    cut = DTensor.from_local(own, mesh, places, run_check=False, shape=parameter.shape, stride=parameter.stride())
    return nn.Parameter(cut, requires_grad=parameter.requires_grad)
