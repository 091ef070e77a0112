"""This rank's share of an update: its micro-batches, and the way from their values to those of all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from fastflow.data.dealing import costs, deal
from fastflow.data.packing import PackedBatch, empty_batch, input_length, pack
from fastflow.data.trajectory import Group, flatten
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import Ranks
from fastflow.models.scoring import split_tokens, to_flat_order, token_logprobs


@dataclass(frozen=True)
class Share:
    """The micro-batches of one rank, of trajectories that all ranks know.

    own: of the trajectories dealt to this rank. fillers: empty batches after them, since every forward and backward
    pass is a collective and all ranks must run as many. lengths: response tokens of all n trajectories. tokens: packed
    tokens of all ranks.
    """

    own: list[PackedBatch]
    fillers: list[PackedBatch]
    lengths: list[int]
    tokens: int
    ranks: Ranks
    device: torch.device

    @classmethod
    def of(cls, model: PackedModel, groups: Sequence[Group], tokens_per_microbatch: int) -> Share:
        """Deal the trajectories of `groups` by their cost, and pack this rank's part. A collective."""
        ranks, device = model.ranks, model.device
        inputs = [input_length(group.prompt, entry) for group in groups for entry in group.trajectories]
        dealt = deal(costs(inputs, model.hidden_size), ranks.count)[ranks.rank] if ranks.count > 1 else None
        own = [batch.to(device) for batch in pack(groups, tokens_per_microbatch, dealt)]
        missing = ranks.max(len(own)) - len(own)
        fillers = [empty_batch().to(device)] * missing
        return cls(own, fillers, [len(entry) for entry in flatten(groups)], sum(inputs), ranks, device)

    def __len__(self) -> int:
        return len(self.own) + len(self.fillers)

    def batches(self) -> Iterator[tuple[PackedBatch, bool]]:
        """Yield each micro-batch, and whether it counts."""
        yield from ((batch, True) for batch in self.own)
        yield from ((batch, False) for batch in self.fillers)

    def flat(self, per_sequence: Sequence[Float[Tensor, " _"]]) -> Float64[Tensor, " n"]:
        """Join values per sequence, a tensor for each micro-batch, into those of all trajectories, in flat order."""
        values = per_sequence[: len(self.own)]
        if self.ranks.count == 1:
            return to_flat_order(self.own, values)
        joined = torch.zeros(len(self.lengths), dtype=torch.float64, device=self.device)
        for batch, entries in zip(self.own, values, strict=True):
            joined[batch.sequences] = entries.double()
        return self.ranks.sum(joined)

    def split(self, per_token: Sequence[Float[Tensor, " _"]]) -> list[Float32[np.ndarray, " _"]]:
        """Cut values per response token into one array for each of all trajectories, in flat order."""
        values = per_token[: len(self.own)]
        if self.ranks.count == 1:
            return split_tokens(self.own, values)
        ends = np.cumsum(self.lengths)
        joined = torch.zeros(int(ends[-1]), dtype=torch.float32)
        for batch, entries in zip(self.own, values, strict=True):
            host = entries.float().cpu().split(list(batch.response_lengths))
            for index, part in zip(batch.sequences.tolist(), host, strict=True):
                joined[int(ends[index]) - len(part) : int(ends[index])] = part
        return np.split(self.ranks.sum(joined).numpy(), ends[:-1])


def rescore(model: PackedModel, groups: Sequence[Group], tokens_per_microbatch: int) -> list[Group]:
    """Recompute behaviour log-probs by `model` at temperature 1. Keeps those of the sampler apart."""
    share = Share.of(model, groups, tokens_per_microbatch)
    with model.eval_mode():
        logprobs = iter(share.split([token_logprobs(model, batch) for batch, _ in share.batches()]))
    return [
        replace(
            group,
            trajectories=tuple(
                replace(trajectory, behaviour_logprobs=next(logprobs), sampler_logprobs=trajectory.behaviour_logprobs)
                for trajectory in group.trajectories
            ),
        )
        for group in groups
    ]
