"""Short proofs that a run goes on with the same prompts and the same base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from fastflow.data.recorded import RecordedPrompt
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import part, rows_of
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALONE = Ranks()
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
    pass over them: where they are cut, all ranks do it together, each for its rows.

    Raises FastflowError where ranks that should hold the same rows do not.
    """
    if isinstance(base, PackedModel):
        return digest_of_tensors(base.model.named_parameters(), base.ranks)
    named = list(policy.model.named_parameters())
    if any(not one.requires_grad for _, one in named):
        named = [(name, one) for name, one in named if not one.requires_grad]
    return digest_of_tensors(named, policy.ranks)


def digest_of_start(model: PackedModel) -> str:
    """Of what tells a model that is not cut yet from another: its buffers, and its weights. Of weights that are still
    in their files, the first rows.
    """
    named: list[tuple[str, torch.Tensor]] = list(model.model.named_buffers())
    if model.unread is None:
        return digest_of_tensors([*named, *model.model.named_parameters()])
    own = [(name, one) for name, one in model.model.named_parameters() if one not in model.unread.places]
    return "first rows " + digest_of_tensors([*named, *own, *model.unread.first_rows()])


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> str:
    """Of the text of every token id, and of the ids that end a response."""
    meaning = {"vocabulary": tokenizer.get_vocab(), "ends": sorted(end_ids)}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def digest_of_tensors(named: Iterable[tuple[str, torch.Tensor]], ranks: Ranks = ALONE) -> str:
    """Of names, types, shapes and bits. One changed bit changes it; it is no defence against an attacker.

    ranks: those that the tensors are cut over, or that hold the same. Raises FastflowError where these differ.
    """
    names, sums = [], []
    for name, tensor in named:
        names.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        first, last = rows_of(tensor) if tensor.dim() else (0, 1)
        row = tensor.numel() // len(tensor) if tensor.dim() and len(tensor) else 1
        sums.append((first, _checksum(part(tensor), first * row) if last > first else 0))
    digest = hashlib.sha256()
    for name, *parts in zip(names, *ranks.gather(sums), strict=True):
        digest.update(f"{name} {_together(name, parts)}\n".encode())
    return digest.hexdigest()


def _together(name: str, parts: Sequence[tuple[int, int]]) -> int:
    """Add up what the ranks found for their rows of a tensor, each as (first row, checksum); signed, in 64 bits."""
    known: dict[int, int] = {}
    for rank, (first, checksum) in enumerate(parts):
        if known.setdefault(first, checksum) != checksum:
            raise FastflowError(
                f"rank {rank} has other weights in {name.split()[0]} than the rank that should hold the same; give all "
                "ranks the same files"
            )
    return (sum(known.values()) + 2**63) % 2**64 - 2**63


def _checksum(tensor: torch.Tensor, first: int = 0) -> int:
    """Sum of the numbers' bits, each times an odd number of its own, modulo 2^64. first: the place of the first one."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), _CHUNK):
        PULSE.work()
        numbers = bits[start : start + _CHUNK].long()
        place = torch.arange(first + start, first + start + len(numbers), device=tensor.device)
        total += (numbers * (place * 0x5851F42D4C957F2D | 1)).sum()
    return int(total)
