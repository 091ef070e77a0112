"""Packs groups of trajectories into PackedBatches: several sequences in one row of tokens, without padding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from fastflow.data.trajectory import Group, Prompt, Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedBatch:
    """S sequences (prompt + response), end to end in T tokens. Policy and base read the same object.

    The last token of a response is not an input, since it predicts nothing: a sequence of P prompt and R response
    tokens takes P + R - 1 inputs (P where R is 0).

    sequences: each sequence's place in the flat order of the trajectories. position_ids: from 0 in each sequence.
    cu_seqlens: where each sequence starts and the last one ends. rows: inputs whose next token is a response token.
    targets: that next token. response_cu_seqlens: boundaries within `rows`. prompt_rows: the inputs that are prompt
    tokens. prompt_owner: the sequence of each of them.
    lengths, response_lengths, prompt_lengths: the same counts on the host, so that no launch waits for the device.
    response_cu_seqlens stays on the host too, where flow_loss reads it.
    """

    sequences: Int64[Tensor, " S"]
    input_ids: Int64[Tensor, " T"]
    position_ids: Int64[Tensor, " T"]
    cu_seqlens: Int32[Tensor, " S+1"]
    rows: Int64[Tensor, " N"]
    targets: Int64[Tensor, " N"]
    response_cu_seqlens: Int32[Tensor, " S+1"]
    prompt_rows: Int64[Tensor, " M"]
    prompt_owner: Int64[Tensor, " M"]
    lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return int(self.input_ids.numel())

    def to(self, device: torch.device | str) -> PackedBatch:
        """Copy the batch with its tensors on `device`, except response_cu_seqlens."""
        moved: dict[str, Any] = {
            entry.name: value.to(device, non_blocking=True)
            for entry in fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor) and entry.name != "response_cu_seqlens"
        }
        return replace(self, **moved)


def input_length(prompt: Prompt, trajectory: Trajectory) -> int:
    """Count the input tokens that one sequence takes in a batch."""
    return len(prompt.ids) + max(len(trajectory) - 1, 0)


def pack(groups: Sequence[Group], tokens_per_microbatch: int, chosen: Sequence[int] | None = None) -> list[PackedBatch]:
    """Pack trajectories into as few batches as first-fit-decreasing finds.

    tokens_per_microbatch: input tokens that a batch may hold. A longer trajectory gets a batch of its own, with a
    warning; nothing is truncated. The result is deterministic: equal lengths keep their order. chosen: places in the
    flat order of those that are packed; None packs all.
    """
    flat = [(group.prompt, trajectory) for group in groups for trajectory in group.trajectories]
    places = range(len(flat)) if chosen is None else chosen
    lengths = [input_length(*flat[place]) for place in places]
    overlong = [length for length in lengths if length > tokens_per_microbatch]
    if overlong:
        logger.warning(
            "sequences over batch.tokens_per_microbatch = %d: %d of %d (longest: %d tokens); each gets a micro-batch "
            "of its own, which may need more memory than planned",
            tokens_per_microbatch, len(overlong), len(lengths), max(overlong),
        )  # fmt: skip
    return [
        _assemble([(places[index], *flat[places[index]]) for index in bin_])
        for bin_ in first_fit_decreasing(lengths, tokens_per_microbatch)
    ]


def empty_batch() -> PackedBatch:
    """Return a batch of one prompt token without a response, for a pass that computes nothing.

    It stands at place 0 of the flat order, so that whoever looks its trajectory up finds one.
    """
    nothing = Trajectory(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), "length")
    return _assemble([(0, Prompt(np.zeros(1, dtype=np.int64)), nothing)])


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill bins of indices whose lengths sum to at most `capacity`. A longer item gets a bin of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        for place, free in enumerate(room):
            if length <= free:
                bins[place].append(index)
                room[place] -= length
                break
        else:
            bins.append([index])
            room.append(capacity - length)
    return bins


def _assemble(items: list[tuple[int, Prompt, Trajectory]]) -> PackedBatch:
    prompt_lengths = np.array([len(prompt.ids) for _, prompt, _ in items])
    response_lengths = np.array([len(trajectory) for _, _, trajectory in items])
    lengths = np.array([input_length(prompt, trajectory) for _, prompt, trajectory in items])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    spans = range(len(items))
    prompt_rows = [starts[s] + np.arange(prompt_lengths[s]) for s in spans]
    rows = [starts[s] + prompt_lengths[s] - 1 + np.arange(response_lengths[s]) for s in spans]
    inputs = [np.concatenate([prompt.ids, trajectory.response_ids[:-1]]) for _, prompt, trajectory in items]

    def ints(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def boundaries(counts: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    return PackedBatch(
        sequences=torch.tensor([index for index, _, _ in items]),
        input_ids=ints(inputs),
        position_ids=ints([np.arange(length) for length in lengths]),
        cu_seqlens=boundaries(lengths),
        rows=ints(rows),
        targets=ints([trajectory.response_ids for _, _, trajectory in items]),
        response_cu_seqlens=boundaries(response_lengths),
        prompt_rows=ints(prompt_rows),
        prompt_owner=ints([np.full(prompt_lengths[s], s) for s in spans]),
        lengths=tuple(lengths.tolist()),
        response_lengths=tuple(response_lengths.tolist()),
        prompt_lengths=tuple(prompt_lengths.tolist()),
    )
