"""Scores packed responses under a model, and brings values of micro-batches back to trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from torch import Tensor

from fastflow.data.packing import PackedBatch
from fastflow.data.trajectory import Group, flatten
from fastflow.models.packed import AdaptersOff, PackedModel


@torch.no_grad()
def token_logprobs(model: PackedModel | AdaptersOff, batch: PackedBatch) -> Float32[Tensor, " N"]:
    """Compute the log-probability of every response token of the batch, at temperature 1. A collective."""

    def forward() -> Float32[Tensor, " N"]:
        return model.logprobs(model.hidden_states(batch)[batch.rows], batch.targets)

    return model.run(forward)


def sum_per_sequence(values: Float[Tensor, " N"], batch: PackedBatch) -> Float64[Tensor, " S"]:
    """Sum values of response rows within each sequence."""
    lengths = torch.tensor(batch.response_lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(values.device)
    return values.new_zeros(len(lengths), dtype=torch.float64).index_add(0, owner, values.double())


def repeat_per_token(values: Shaped[Tensor, " S"], lengths: Sequence[int]) -> Shaped[Tensor, " N"]:
    """Return each sequence's value at each of its response tokens. lengths: response tokens of each, on the host."""
    counts = torch.tensor(lengths, dtype=torch.int64).to(values.device, non_blocking=True)
    return values.repeat_interleave(counts, output_size=sum(lengths))


def to_flat_order(batches: Sequence[PackedBatch], per_sequence: Sequence[Float[Tensor, " _"]]) -> Float64[Tensor, " n"]:
    """Join values per sequence, a tensor for each batch, into the flat order of the trajectories."""
    order = torch.cat([batch.sequences for batch in batches])
    values = torch.cat([tensor.double() for tensor in per_sequence])
    return torch.empty_like(values).index_copy(0, order, values)


def split_tokens(
    batches: Sequence[PackedBatch], per_token: Sequence[Float[Tensor, " _"]]
) -> list[Float32[np.ndarray, " _"]]:
    """Cut values per response token, a tensor for each batch, into one array per trajectory, in flat order."""
    arrays: dict[int, np.ndarray] = {}
    for batch, values in zip(batches, per_token, strict=True):
        parts = np.split(values.float().cpu().numpy(), np.cumsum(batch.response_lengths)[:-1])
        arrays.update(zip(batch.sequences.tolist(), parts, strict=True))
    return [arrays[index] for index in sorted(arrays)]


def group_index(groups: Sequence[Group]) -> Int64[Tensor, " n"]:
    """Return the group of each trajectory, in flat order."""
    sizes = torch.tensor([len(group.trajectories) for group in groups])
    return torch.repeat_interleave(torch.arange(len(groups)), sizes)


def behaviour_logprob(groups: Sequence[Group]) -> Float64[Tensor, " n"]:
    """Sum the behaviour log-probs of each trajectory, nats, in flat order."""
    sums = [trajectory.behaviour_logprobs.sum(dtype=np.float64) for trajectory in flatten(groups)]
    return torch.tensor(sums, dtype=torch.float64)
