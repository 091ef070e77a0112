"""A head whose vocabulary is cut over several ranks, and the reductions that make one row of it."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group


@dataclass(frozen=True)
class VocabularyShard:
    """Rows [start, start + V) of the head are on this rank; those of the other ranks of `group` are the rest.

    The shards may differ in size, and every rank passes the same hidden states and the same targets, numbered
    over the whole vocabulary. Gradients: that of the weight and the bias is the rank's own; that of the hidden
    states is summed over the group, so each rank holds all of it.
    """

    start: int
    group: dist.ProcessGroup

    @classmethod
    def named(cls, start: int, group_name: str | None) -> "VocabularyShard | None":
        """From the name that an operator's schema can carry; None for a head that is whole."""
        return None if group_name is None else cls(start, _resolve_process_group(group_name))

    def target_logit(self, found: Tensor, is_here: Tensor) -> Tensor:
        """(R,) logits of the targets over all ranks, in one reduction.

        found: (R,) this rank's, 0 where the target is not among its rows; is_here: (R,), whether it is. NaN for a
        target that no rank holds, or more than one: it does not exist, or the shards overlap.
        """
        total, owners = self.sum_(torch.stack([found, is_here.to(found.dtype)]))
        return total.masked_fill_(owners != 1, math.nan)

    def sum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def maximum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values
