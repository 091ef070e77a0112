"""Short proofs that a run goes on with the same prompts and the same base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Prompt
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.pulse import PULSE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 2**24  # numbers that are weighted at once


def digest_of_prompts(prompts: Sequence[Prompt], *, with_records: bool) -> str:
    """Of all token ids, in their order, and of recorded responses with their weights. with_records: also of what a
    reward or a format check reads.
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt.ids).to_bytes(8, "little") + prompt.ids.tobytes())
        if isinstance(prompt, RecordedPrompt):
            for response, weight in zip(prompt.responses, prompt.weights, strict=True):
                what = f"{len(response)} {response.finish_reason} {weight!r}"
                digest.update(what.encode() + response.response_ids.tobytes())
        if with_records:
            digest.update(json.dumps(prompt.record, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def digest_of_base(base: PackedModel | AdaptersOff | None, policy: PackedModel) -> str:
    """Of the frozen base's weights: the base's own, or all that has no gradient where it is the policy without its
    adapters. Where there is no base, of the weights that the policy starts from. Computed where the weights are, in one
    pass over them.
    """
    if isinstance(base, PackedModel):
        return digest_of_tensors(base.model.named_parameters())
    named = list(policy.model.named_parameters())
    if any(not one.requires_grad for _, one in named):
        named = [(name, one) for name, one in named if not one.requires_grad]
    return digest_of_tensors(named)


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> str:
    """Of the text of every token id, and of the ids that end a response."""
    meaning = {"vocabulary": tokenizer.get_vocab(), "ends": sorted(end_ids)}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def digest_of_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of names, types, shapes and bits. One changed bit changes it; it is no defence against an attacker."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()


def _checksum(tensor: torch.Tensor) -> int:
    """Sum of the numbers' bits, each times an odd number of its own, modulo 2^64."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), _CHUNK):
        PULSE.work()
        part = bits[start : start + _CHUNK].long()
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += (part * (place * 0x5851F42D4C957F2D | 1)).sum()
    return int(total)
