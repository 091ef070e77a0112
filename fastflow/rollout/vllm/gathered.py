"""Gather the weights of a policy that is cut over ranks into memory that this rank's vLLM process sees.

One bucket of limited size is filled again and again, so that no rank ever holds the whole model beside its part. Each
tensor is gathered once, and all ranks hand it on to their own vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing.reductions

from fastflow.models.cut.parallel import whole
from fastflow.models.packed import PackedModel
from fastflow.models.weights.merging import MergeWatch, RoundingLoss, adapted_layers, weight_update
from fastflow.rollout.vllm.adapters import remedy_of
from fastflow.rollout.vllm.messages import Attach, Place
from fastflow.rollout.vllm.room import require_room
from fastflow.rollout.vllm.weights import ADAPTED, BUCKET_BYTES, Named, fill, places_of, shared

Source = tuple[str, torch.nn.Parameter, torch.Tensor]  # name, the policy's parameter, its place in the bucket


class GatheredWeights:
    """All weights of the policy's causal LM, round after round in one bucket. Takes the place of SharedWeights.

    attach, engine_dtype, merge: as there. Making it is a collective: the ranks of one machine need a bucket each, in
    one shared memory. Raises FastflowError on all ranks where some have no room for it.
    """

    def __init__(
        self,
        policy: PackedModel,
        bucket_bytes: int = BUCKET_BYTES,
        *,
        engine_dtype: torch.dtype | None = None,
        merge: bool = True,
    ):
        self._policy = policy
        self._engine_dtype = engine_dtype
        self._merge = merge
        self._loss, self._watch = RoundingLoss(), MergeWatch(remedy_of(policy))
        self._layers = dict(adapted_layers(policy.causal_lm))
        by_dtype: dict[tuple[torch.dtype, bool], list[Named]] = {}
        for name, parameter in policy.causal_lm.named_parameters():
            if ".lora_" not in name:
                by_dtype.setdefault((parameter.dtype, self._changes(name, parameter)), []).append((name, parameter))
        rounds = [part for parameters in by_dtype.values() for part in fill(parameters, bucket_bytes)]
        room = {dtype: 0 for dtype, _ in by_dtype}
        for part in rounds:
            room[part[0][1].dtype] = max(room[part[0][1].dtype], sum(one.numel() for _, one in part))
        require_room(policy.device, sum(count * dtype.itemsize for dtype, count in room.items()), policy.ranks)
        with policy.ranks.together():
            blocks = {dtype: shared(torch.empty(0, dtype=dtype, device=policy.device), room[dtype]) for dtype in room}
        numbers = {dtype: number for number, dtype in enumerate(blocks)}
        places: list[tuple[Place, ...]] = []
        self._sources: list[list[Source]] = []
        for part in rounds:
            dtype, offset, found, sources = part[0][1].dtype, 0, [], []
            for name, parameter in part:
                found += places_of(policy, name, parameter, numbers[dtype], offset)
                view = blocks[dtype][offset : offset + parameter.numel()].view(parameter.shape)
                sources.append((name, parameter, view))
                offset += parameter.numel()
            places.append(tuple(found))
            self._sources.append(sources)
        merged = [any(self._is_merged(name) for name, _ in part) for part in rounds]
        self._last_merged = max((number for number, holds in enumerate(merged) if holds), default=-1)
        self._changing = [self._changes(*part[0]) for part in rounds]
        self.attach = Attach(tuple(map(_as_first_device, blocks.values())), tuple(places))

    @property
    def rounds(self) -> int:
        return len(self._sources)

    def due(self, *, is_complete: bool) -> list[int]:
        """The rounds of a load. is_complete: the engines hold all weights, so that those which do not change stay."""
        return [round for round in range(self.rounds) if self._changing[round] or not is_complete]

    @torch.no_grad()
    def prepare(self, round: int) -> None:
        """Gather what a round takes: a collective. The round before it must be over."""
        for name, parameter, target in self._sources[round]:
            gathered = whole(parameter)
            if not self._is_merged(name):
                target.copy_(gathered)
                continue
            update = weight_update(self._layers[name.removesuffix(ADAPTED)], torch.float32)
            target.copy_(gathered + update)  # the sum is float32, rounded once
            held = target.to(self._engine_dtype or target.dtype)
            self._loss.add(gathered, update, held)
        if round == self._last_merged:
            self._watch.judge(self._loss, held.dtype)
            self._loss = RoundingLoss()
        if self._policy.device.type == "cuda":  # the streams of two processes have no common order
            torch.cuda.synchronize(self._policy.device)

    def _is_merged(self, name: str) -> bool:
        return self._merge and name.endswith(ADAPTED)

    def _changes(self, name: str, parameter: torch.nn.Parameter) -> bool:
        return parameter.requires_grad or self._is_merged(name)


class _OfFirstDevice:
    """A CUDA tensor that a process which sees its GPU alone opens as one of its first device."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
        rebuild, arguments = torch.multiprocessing.reductions.reduce_tensor(self._tensor)
        before, after = arguments[:STORAGE_DEVICE], arguments[STORAGE_DEVICE + 1 :]
        return rebuild, (*before, 0, *after)


STORAGE_DEVICE = 6  # of the arguments of torch.multiprocessing.reductions.rebuild_cuda_tensor


def _as_first_device(block: torch.Tensor) -> Any:
    return _OfFirstDevice(block) if block.device.index else block
