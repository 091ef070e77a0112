"""Keep the policy's weights in memory that another process sees: a sync moves no data through files or pipes.

Parameters that vLLM takes unchanged live in that memory themselves, so that the optimiser's step updates them there.
Others are written into buckets of limited size, one round of a load after the other: weights under LoRA adapters,
merged, and all weights of a policy that is cut over ranks, gathered. So no rank holds the whole model beside its part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing.reductions

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import whole
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import parts_of
from fastflow.models.weights.merging import MergeWatch, RoundingLoss, adapted_layers, weight_update
from fastflow.rollout.vllm.adapters import remedy_of
from fastflow.rollout.vllm.messages import Attach, Place
from fastflow.rollout.vllm.room import require_room

BUCKET_BYTES = 256 * 2**20
ADAPTED = ".base_layer.weight"
STORAGE_DEVICE = 6  # of the arguments of torch.multiprocessing.reductions.rebuild_cuda_tensor
Named = tuple[str, torch.nn.Parameter]
Source = tuple[str, torch.nn.Parameter, torch.Tensor]  # name, the policy's parameter, its place in a bucket


@dataclass(frozen=True)
class Round:
    """What one Load takes. sources: what is written for it first; nothing where the parameters live there. changes:
    whether training changes any of it.
    """

    places: tuple[Place, ...]
    sources: tuple[Source, ...] = ()
    changes: bool = True


class SharedWeights:
    """All weights of the policy's causal LM, under the names of its checkpoint, in shared blocks of memory.

    attach: the message that tells the other process where they are. engine_dtype: the type in which the other process
    holds them; a merge whose rounding loses the adapters is logged. merge: whether to merge the adapters; otherwise the
    blocks hold the weights without them. gather: whether the policy is cut over ranks, so that all weights go through
    buckets.

    Where it is cut, making this and `prepare` are collectives: the ranks of one machine need a bucket each, in one
    shared memory. Raises FastflowError, on all ranks, where some have no room there.
    """

    def __init__(
        self,
        policy: PackedModel,
        bucket_bytes: int = BUCKET_BYTES,
        *,
        engine_dtype: torch.dtype | None = None,
        merge: bool = True,
        gather: bool = False,
    ):
        self._policy, self._engine_dtype, self._merge = policy, engine_dtype, merge
        self._loss, self._watch = RoundingLoss(), MergeWatch(remedy_of(policy))
        self._layers = dict(adapted_layers(policy.causal_lm))
        staying, written = self._split(gather, bucket_bytes)
        room: dict[torch.dtype, int] = {}
        for part in written:
            room[_dtype(part)] = max(room.get(_dtype(part), 0), _count(part))
        in_buckets = sum(count * dtype.itemsize for dtype, count in room.items())
        require_room(policy.device, in_buckets + sum(one.nbytes for _, one in staying), policy.ranks)
        blocks: list[torch.Tensor] = []
        moved = [place for part in _fill(staying, bucket_bytes) for place in self._move(part, blocks)]
        with policy.ranks.together():
            buckets = {dtype: _shared(dtype, count, policy.device) for dtype, count in room.items()}
        numbers = {dtype: len(blocks) + place for place, dtype in enumerate(buckets)}
        blocks += buckets.values()
        self._rounds = [Round(tuple(moved))] if moved else []
        for part in written:
            sources = tuple(_views(part, buckets[_dtype(part)]))
            places = [place for name, _, view in sources for place in self._places(name, view, numbers[_dtype(part)])]
            self._rounds.append(Round(tuple(places), sources, self._changes(*part[0])))
        self.attach = Attach(tuple(map(_as_first_device, blocks)), tuple(round.places for round in self._rounds))
        merging = [any(self._is_merged(name) for name, *_ in round.sources) for round in self._rounds]
        self._last_merged = max((number for number, merges in enumerate(merging) if merges), default=-1)

    @property
    def rounds(self) -> int:
        return len(self._rounds)

    def due(self, *, is_complete: bool) -> list[int]:
        """The rounds of a load. is_complete: the engines hold all weights, so that those which do not change stay."""
        return [number for number, round in enumerate(self._rounds) if round.changes or not is_complete]

    @torch.no_grad()
    def prepare(self, number: int) -> None:
        """Write what a round takes. The round before it must be over."""
        for name, parameter, target in self._rounds[number].sources:
            weight = whole(parameter)
            if not self._is_merged(name):
                target.copy_(weight)
                continue
            update = weight_update(self._layers[name.removesuffix(ADAPTED)], torch.float32)
            target.copy_(weight + update)  # the sum is float32, rounded once
            held = target.to(self._engine_dtype or target.dtype)
            self._loss.add(weight, update, held)
        if number == self._last_merged:
            self._watch.judge(self._loss, held.dtype)
            self._loss = RoundingLoss()
        if self._policy.device.type == "cuda":  # the streams of two processes have no common order
            torch.cuda.synchronize(self._policy.device)

    def _split(self, gather: bool, bucket_bytes: int) -> tuple[list[Named], list[list[Named]]]:
        """Return the parameters that move into blocks, and the others in runs for a bucket.

        A run is of one type, and training changes all of it or nothing.
        """
        staying: list[Named] = []
        written: dict[tuple[torch.dtype, bool], list[Named]] = {}
        named = [item for item in self._policy.causal_lm.named_parameters() if ".lora_" not in item[0]]
        for name, parameter in named:
            if gather or self._is_merged(name):
                written.setdefault((parameter.dtype, self._changes(name, parameter)), []).append((name, parameter))
            else:
                staying.append((name, parameter))
        return staying, [part for alike in written.values() for part in _fill(alike, bucket_bytes)]

    def _is_merged(self, name: str) -> bool:
        return self._merge and name.endswith(ADAPTED)

    def _changes(self, name: str, parameter: torch.nn.Parameter) -> bool:
        return parameter.requires_grad or self._is_merged(name)

    def _move(self, named: list[Named], blocks: list[torch.Tensor]) -> Iterator[Place]:
        """Move parameters into new shared blocks, one per type; they become views of these. Yields their places."""
        for dtype in dict.fromkeys(parameter.dtype for _, parameter in named):
            alike = [(name, parameter) for name, parameter in named if parameter.dtype == dtype]
            blocks.append(_shared(dtype, _count(alike), self._policy.device))
            for name, parameter, view in _views(alike, blocks[-1]):
                view.copy_(parameter.data)
                parameter.data = view
                yield from self._places(name, view, len(blocks) - 1)

    def _places(self, name: str, view: torch.Tensor, block: int) -> Iterator[Place]:
        """The places of what a checkpoint holds for a parameter that has this view of a block."""
        for part in parts_of(self._policy.causal_lm.config, name.replace(".base_layer", ""), view.shape):
            yield Place(part.name, block, int(view.storage_offset()) + part.offset, part.shape)


def _fill(named: list[Named], bucket_bytes: int) -> Iterator[list[Named]]:
    """Cut parameters into consecutive runs of at most `bucket_bytes`; a larger parameter is a run of its own."""
    bucket: list[Named] = []
    for name, parameter in named:
        if bucket and sum(one.nbytes for _, one in bucket) + parameter.nbytes > bucket_bytes:
            yield bucket
            bucket = []
        bucket.append((name, parameter))
    if bucket:
        yield bucket


def _views(named: list[Named], memory: torch.Tensor) -> Iterator[Source]:
    """Give each parameter its place in the memory, one behind the other."""
    offset = 0
    for name, parameter in named:
        yield name, parameter, memory[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()


def _dtype(part: list[Named]) -> torch.dtype:
    return part[0][1].dtype


def _count(named: list[Named]) -> int:
    return sum(parameter.numel() for _, parameter in named)


def _shared(dtype: torch.dtype, count: int, device: torch.device) -> torch.Tensor:
    memory = torch.empty(count, dtype=dtype, device=device)
    if memory.device.type == "cpu":
        return memory.share_memory_()
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in os.environ.get(name, "").lower().replace(" ", ""):
            raise FastflowError(
                f"{name} asks for expandable segments, which another process cannot open on every system; unset it, or "
                "sample with --rollout.engine local"
            )
    return memory  # CUDA shares it by its handle


class _OfFirstDevice:
    """A CUDA tensor that a process which sees its GPU alone opens as one of its first device."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
        rebuild, arguments = torch.multiprocessing.reductions.reduce_tensor(self._tensor)
        before, after = arguments[:STORAGE_DEVICE], arguments[STORAGE_DEVICE + 1 :]
        return rebuild, (*before, 0, *after)


def _as_first_device(block: torch.Tensor) -> Any:
    return _OfFirstDevice(block) if block.device.index else block
