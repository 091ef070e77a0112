"""Keep the policy's weights in memory that another process sees: a sync moves no data through files or pipes.

Parameters that vLLM takes unchanged live in that memory themselves, so that the optimiser's step updates them there.
Weights under LoRA adapters are merged into a bucket of limited size, one round of a load after the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import parts_of
from fastflow.models.weights.merging import MergeWatch, RoundingLoss, adapted_layers, weight_update
from fastflow.rollout.vllm.adapters import remedy_of
from fastflow.rollout.vllm.messages import Attach, Place
from fastflow.rollout.vllm.room import require_room

BUCKET_BYTES = 256 * 2**20
ADAPTED = ".base_layer.weight"
Named = tuple[str, torch.nn.Parameter]


class SharedWeights:
    """All weights of the policy's causal LM, under the names of its checkpoint, in shared blocks of memory.

    attach: the message that tells the other process where they are. engine_dtype: the type in which the other process
    holds them; a merge whose rounding loses the adapters is logged. merge: whether to merge the adapters; otherwise the
    blocks hold the weights without them. Raises FastflowError where shared memory has no room for them.
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
        self._loss, self._watch = RoundingLoss(), MergeWatch(remedy_of(policy))
        self._layers = dict(adapted_layers(policy.causal_lm))
        named = [item for item in policy.causal_lm.named_parameters() if ".lora_" not in item[0]]
        adapted = [item for item in named if merge and item[0].endswith(ADAPTED)]
        plain = [item for item in named if not (merge and item[0].endswith(ADAPTED))]
        buckets = list(fill(adapted, bucket_bytes))
        require_room(policy.device, sum(_bytes(plain)) + max((sum(_bytes(bucket)) for bucket in buckets), default=0))
        blocks: list[torch.Tensor] = []
        rounds = [tuple(place for part in fill(plain, bucket_bytes) for place in self._move(part, blocks))]
        self._merged: list[list[tuple[str, torch.Tensor]]] = [[]]  # for each round: the merged weights it takes
        self._bucket(buckets, blocks, rounds)
        self.attach = Attach(tuple(blocks), tuple(rounds))

    @property
    def rounds(self) -> int:
        return len(self.attach.rounds)

    def due(self, *, is_complete: bool) -> range:
        """The rounds of a load: all of them, since those that do not change cost next to nothing."""
        return range(self.rounds)

    @torch.no_grad()
    def prepare(self, round: int) -> None:
        """Write the merged weights that a round takes. The round before it must be over."""
        for name, target in self._merged[round]:
            layer = self._layers[name.removesuffix(ADAPTED)]
            update = weight_update(layer, torch.float32)
            target.copy_(layer.base_layer.weight + update)  # the sum is float32, rounded once
            held = target.to(self._engine_dtype or target.dtype)
            self._loss.add(layer.base_layer.weight, update, held)
        if round == self.rounds - 1 and self._merged[round]:
            self._watch.judge(self._loss, held.dtype)
            self._loss = RoundingLoss()
        if self._policy.device.type == "cuda":  # the streams of two processes have no common order
            torch.cuda.synchronize(self._policy.device)

    def _move(self, named: list[Named], blocks: list[torch.Tensor]) -> Iterator[Place]:
        """Move parameters into new shared blocks, one per type; they become views of these. Yields their places."""
        by_dtype: dict[torch.dtype, list[Named]] = {}
        for name, parameter in named:
            by_dtype.setdefault(parameter.dtype, []).append((name, parameter))
        for parameters in by_dtype.values():
            memory = shared(parameters[0][1], sum(parameter.numel() for _, parameter in parameters))
            offset = 0
            for name, parameter in parameters:
                view = memory[offset : offset + parameter.numel()].view(parameter.shape)
                view.copy_(parameter.data)
                parameter.data = view
                yield from places_of(self._policy, name, parameter, len(blocks), offset)
                offset += parameter.numel()
            blocks.append(memory)

    def _bucket(self, buckets: list[list[Named]], blocks: list[torch.Tensor], rounds: list[tuple[Place, ...]]) -> None:
        """Add one shared block, into which each later round is merged."""
        if not buckets:
            return
        largest = max(sum(parameter.numel() for _, parameter in bucket) for bucket in buckets)
        memory = shared(buckets[0][0][1], largest)
        for bucket in buckets:
            places, targets, offset = [], [], 0
            for name, parameter in bucket:
                view = memory[offset : offset + parameter.numel()].view(parameter.shape)
                targets.append((name, view))
                places.append(Place(name.replace(".base_layer", ""), len(blocks), offset, parameter.shape))
                offset += parameter.numel()
            rounds.append(tuple(places))
            self._merged.append(targets)
        blocks.append(memory)


def places_of(policy: PackedModel, name: str, parameter: torch.Tensor, block: int, offset: int) -> list[Place]:
    """Return the places of what a checkpoint holds for a parameter that begins at an offset of a block."""
    parts = parts_of(policy.causal_lm.config, name.replace(".base_layer", ""), parameter.shape)
    return [Place(part.name, block, offset + part.offset, part.shape) for part in parts]


def fill(named: list[Named], bucket_bytes: int) -> Iterator[list[Named]]:
    """Cut parameters into consecutive runs of at most `bucket_bytes`; a larger parameter is a run of its own."""
    bucket: list[Named] = []
    for name, parameter in named:
        if bucket and sum(_bytes(bucket)) + parameter.nbytes > bucket_bytes:
            yield bucket
            bucket = []
        bucket.append((name, parameter))
    if bucket:
        yield bucket


def _bytes(named: list[Named]) -> list[int]:
    return [parameter.nbytes for _, parameter in named]


def shared(like: torch.Tensor, count: int) -> torch.Tensor:
    memory = like.detach().new_empty(count)
    if memory.device.type == "cpu":
        return memory.share_memory_()
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in os.environ.get(name, "").lower().replace(" ", ""):
            raise FastflowError(
                f"{name} asks for expandable segments, which another process cannot open on every system; unset it, or "
                "sample with --rollout.engine local"
            )
    return memory  # CUDA shares it by its handle
