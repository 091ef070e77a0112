"""Describes a head whose vocabulary is cut over several ranks, and has the reductions that make whole rows of it."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group


@dataclass(frozen=True)
class VocabularyShard:
    """Rows [start, start + V) of the head are on this rank; those of the other ranks of `group` are the rest.

    The shards may differ in size, and every rank passes the same hidden states and the same targets, numbered
    over the whole vocabulary, and the same options. Gradients: that of the weight and the bias is the rank's own; that
    of the hidden states is summed over the group, so each rank holds all of it.

    largest: V of the group's largest shard, the same number on every rank; the ranks cut the rows into blocks by it.
    Where it is None and the op gets no block_rows, each call asks the group for it, and the host waits for the answer.

    Raises:
        ValueError: largest is below 1.
    """

    start: int
    group: dist.ProcessGroup
    largest: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.largest is not None and self.largest < 1:
            raise ValueError(f"largest must be the rows of the largest shard, got {self.largest}; leave it out to ask.")

    @classmethod
    def named(cls, start: int, group_name: str | None, largest: int | None) -> "VocabularyShard | None":
        """Find the group by the name that an operator's schema can carry; None for a head that is whole."""
        if group_name is None:
            return None
        return cls(start, _resolve_process_group(cast(Any, group_name)), largest=largest)

    def largest_vocabulary(self, own: int, device: torch.device) -> int:
        """Return V of the largest shard; own: V of this one, on this device.

        Raises:
            ValueError: `largest` is less than this shard's own.
            RuntimeError: it would have to be asked for while a CUDA graph is captured.
        """
        if self.largest is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "A CUDA graph is being captured, where the ranks cannot ask each other for the size of their "
                    "largest shard; pass VocabularyShard(..., largest=...) or block_rows."
                )
            return int(self.maximum_(torch.tensor(own, device=device)))
        if self.largest < own:
            raise ValueError(
                f"VocabularyShard.largest is {self.largest}, but this rank's shard has {own} rows; "
                "pass the rows of the largest shard of the group, the same number on every rank."
            )
        return self.largest

    def target_logit(self, found: Float[Tensor, " R"], is_here: Bool[Tensor, " R"]) -> Float[Tensor, " R"]:
        """Return the logits of the targets over all ranks, by one reduction.

        found: this rank's, 0 where the target is not among its rows; is_here: whether it is. A target gets NaN where no
        rank holds it, since it does not exist, and where several do, since their shards overlap.
        """
        total, owners = self.sum_(torch.stack([found, is_here.to(found.dtype)]))
        return total.masked_fill_(owners != 1, math.nan)

    def gathered(self, values: Tensor) -> Tensor:
        """Return the values of all ranks, in their order, along a dimension ahead of their own."""
        ranks = dist.get_world_size(self.group)
        found = values.new_empty(ranks * len(values), *values.shape[1:])
        # torch 2.13 has another name for it, and warns of this one
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(found, values, group=self.group)
        return found.view(ranks, *values.shape)

    def sum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self.group)
        return values

    def maximum_(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values


class SumsUnderWay:
    """Runs sums over the ranks of a shard beside what follows; a head that is whole has nothing to sum."""

    def __init__(self, shard: VocabularyShard | None):
        self._shard = shard
        self._started: list[dist.Work] = []

    def start_(self, values: Tensor) -> None:
        """Start to sum values in place: they are contiguous, and not to be touched before `wait`."""
        if self._shard is not None:
            self._started.append(dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self._shard.group, async_op=True))

    def wait(self) -> None:
        """Wait until all sums are there; on CUDA the current stream waits, not the host."""
        for work in self._started:
            work.wait()
        self._started.clear()
