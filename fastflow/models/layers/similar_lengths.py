"""Pads packed sequences of similar length into batches, for layers that take no packed row.

No causal layer lets a token see the padding on its right, so the padded rows give what the sequences alone would.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Buckets:
    """Batches of similar length. positions: of each batch the packed tokens that it reads, (sequences, longest), where
    padding repeats the last token of a sequence. order: (T,) brings what all batches put out back to the packed order.
    """

    positions: tuple[Int64[Tensor, "S L"], ...]
    order: Int64[Tensor, " T"]

    def packed(self, outputs: Sequence[Shaped[Tensor, "S L ..."]]) -> Shaped[Tensor, "T ..."]:
        """Put the outputs of all batches in the packed order, without their padding."""
        return torch.cat([output.flatten(0, 1) for output in outputs]).index_select(0, self.order)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a training pass may find what one without gradients has made
def in_buckets(lengths: tuple[int, ...], device: torch.device) -> Buckets:
    """Plan the batches of packed sequences of these lengths, longest first."""
    count = torch.tensor(lengths)
    start = torch.cumsum(count, 0) - count
    order = torch.empty(int(count.sum()), dtype=torch.int64)
    positions, offset = [], 0
    for members in _similar_lengths(lengths):
        longest = lengths[members[0]]
        steps = torch.arange(longest)
        chosen = torch.tensor(members)
        positions.append((start[chosen, None] + torch.minimum(steps, count[chosen, None] - 1)).to(device))
        for slot, member in enumerate(members):
            begin = int(start[member])
            order[begin : begin + lengths[member]] = offset + slot * longest + steps[: lengths[member]]
        offset += len(members) * longest
    return Buckets(tuple(positions), order.to(device))


def _similar_lengths(lengths: tuple[int, ...]) -> list[list[int]]:
    """Sort sequences by falling length. Start a new bucket where padding would waste over a quarter of a sequence."""
    buckets: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if buckets and 4 * lengths[index] >= 3 * lengths[buckets[-1][0]]:
            buckets[-1].append(index)
        else:
            buckets.append([index])
    return buckets
