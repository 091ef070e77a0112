"""Rows of all ranks put together on each, and taken apart again, with their gradients.

Every rank has rows of its own, as many as it likes. `gather` gives each rank the rows of all, in the order of the
ranks; `own` keeps those of this rank. What is computed between the two is the same on every rank, so that a gradient
passes each way once: that of gathered rows is whole already, and that of kept rows is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from fastflow.models.pulse import PULSE
from fastflow_kernels import VocabularyShard


@dataclass(frozen=True)
class RowsOfRanks:
    """Who has which of N rows. counts: rows of each rank. rank: this one. shard: whose group they travel in."""

    counts: Sequence[int]
    rank: int
    shard: VocabularyShard

    @classmethod
    def ask(cls, *own: int, shard: VocabularyShard) -> tuple[RowsOfRanks, ...]:
        """Tell the other ranks how many rows of several kinds this one has, by one collective of the hosts."""
        PULSE.beat()
        counts = shard.gathered(torch.tensor(own, dtype=torch.int64))
        rank = dist.get_rank(shard.group)
        return tuple(cls(of_kind, rank, shard) for of_kind in counts.T.tolist())

    @property
    def place(self) -> slice:
        """Where this rank's rows are among all."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def gather(self, own: Float[Tensor, "n ..."]) -> Float[Tensor, "N ..."]:
        """Return the rows of all ranks. Gradient: this rank's part of what the same computation gives on each."""
        return _Gather.apply(own, self)

    def own(self, every: Float[Tensor, "N ..."]) -> Float[Tensor, "n ..."]:
        """Keep the rows of this rank. Gradient: that of all ranks' rows, gathered."""
        return _Own.apply(every, self)

    def together(self, own: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "N ..."]:
        """Return the rows of all ranks, without gradient. Shorter parts are padded while they travel."""
        longest = max(self.counts)
        if longest == 0:
            return own
        PULSE.beat()
        padded = own.contiguous()
        if len(own) < longest:
            padded = own.new_zeros(longest, *own.shape[1:])
            padded[: len(own)] = own
        found = self.shard.gathered(padded)
        if min(self.counts) == longest:
            return found.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(found, self.counts, strict=True)])

    def offsets(self, cu_seqlens: Int64[Tensor, " offsets"]) -> Int64[Tensor, " all_offsets"]:
        """Return where each of all ranks' sequences begins among all rows. These rows are sequences; on the host."""
        lengths = self.together(cu_seqlens.diff().long())
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: RowsOfRanks) -> Tensor:
        ctx.place = rows.place
        return rows.together(own)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0][ctx.place], None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, every: Tensor, rows: RowsOfRanks) -> Tensor:
        ctx.rows = rows
        return every[rows.place].clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.together(upstream[0]), None


class SummedGradient(torch.autograd.Function):
    """Returns a tensor that all ranks of a group have. Gradient: the sum of theirs, which all of them pass."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        PULSE.beat()
        total = upstream[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class OwnPart(torch.autograd.Function):
    """Puts this rank's part of a sum in the sum's place. Gradient: the upstream gradient of the ranks that have rows,
    which must be one number; NaN where they differ.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, part: Tensor, rows: RowsOfRanks) -> Tensor:
        ctx.rows = rows
        return part.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        rows: RowsOfRanks = ctx.rows
        PULSE.beat()
        of_ranks = rows.shard.gathered(upstream[0].reshape(1)).flatten()
        counting = [rank for rank, count in enumerate(rows.counts) if count]
        if not counting:
            return torch.zeros_like(upstream[0]), None, None
        low, high = torch.stack([of_ranks[rank] for rank in counting]).aminmax()
        return torch.where(low == high, low, torch.nan), None, None
