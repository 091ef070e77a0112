"""Trajectories as rectangles: prompts padded on the left, responses on the right, as TRL's trainers lay them out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastflow.data.trajectory import Group, Prompt, Trajectory


@dataclass(frozen=True)
class PaddedBatch:
    """B sequences of P prompt and R response places.

    input_ids, attention_mask: (B, P+R) int64. response_mask: (B, R) bool. sequences: (B,) int64, each sequence's
    place in the flat order of the trajectories.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    sequences: Tensor

    @property
    def responses(self) -> int:
        """R."""
        return self.response_mask.shape[1]

    @property
    def targets(self) -> Tensor:
        """(B, R) int64."""
        return self.input_ids[:, -self.responses :]


def padded_batches(
    groups: Sequence[Group], device: torch.device, *, most_slots: int, most_logit_rows: float, by_length: bool
) -> list[PaddedBatch]:
    """All trajectories, in batches of at most `most_slots` places and `most_logit_rows` response places.

    A sequence that is larger than that gets a batch of its own. Without `by_length`, batches keep the order of the
    trajectories and are padded to the longest prompt and response of all, as trainers do that pad once after the
    rollout. With it, sequences of similar length share a batch that is as wide as they need.
    """
    flat = [(group.prompt, entry) for group in groups for entry in group.trajectories]
    sizes = [(len(prompt.ids), len(entry)) for prompt, entry in flat]
    order = sorted(range(len(flat)), key=lambda i: -sum(sizes[i])) if by_length else list(range(len(flat)))
    widest = _widest(sizes)
    batches: list[PaddedBatch] = []
    chosen: list[int] = []
    for index in order:
        prompts, responses = _widest([sizes[i] for i in (*chosen, index)]) if by_length else widest
        count = len(chosen) + 1
        if chosen and (count * (prompts + responses) > most_slots or count * responses > most_logit_rows):
            batches.append(_assemble(flat, chosen, None if by_length else widest, device))
            chosen = []
        chosen.append(index)
    return [*batches, _assemble(flat, chosen, None if by_length else widest, device)]


def _widest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(prompt for prompt, _ in sizes), max(response for _, response in sizes)


def _assemble(
    flat: list[tuple[Prompt, Trajectory]], chosen: list[int], size: tuple[int, int] | None, device: torch.device
) -> PaddedBatch:
    prompts, responses = size or _widest([(len(flat[i][0].ids), len(flat[i][1])) for i in chosen])
    input_ids = torch.zeros(len(chosen), prompts + responses, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, index in enumerate(chosen):
        prompt, trajectory = flat[index]
        places = slice(prompts - len(prompt.ids), prompts), slice(prompts, prompts + len(trajectory))
        for place, ids in zip(places, (prompt.ids, trajectory.response_ids), strict=True):
            input_ids[row, place] = torch.from_numpy(ids)
            attention_mask[row, place] = 1
    moved = (tensor.to(device) for tensor in (input_ids, attention_mask, attention_mask[:, prompts:].bool()))
    return PaddedBatch(*moved, torch.tensor(chosen, device=device))
