"""flow_loss over its blocks on tensors that have no memory, and without its kernels: what it would take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.flow_loss_blocks import FlowLossOverBlocks, NeededGradients
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.hopper import projector
from fastflow_kernels.implementation import Choice
from fastflow_kernels.sequence_terms import SequenceInputs
from fastflow_kernels.triton.finish import finish_kernel

WIDTH, VOCABULARY = 1536, 151936
TILE = 64  # columns of the tile that is taken where there is no device
NO_LAUNCH = {
    "empty",
    "new_empty",
    "empty_like",
    "detach",
    "t",
    "slice",
    "view",
    "unsqueeze",
    "select",
    "expand",
    "alias",
    "unbind",
}


class Watch(TorchDispatchMode):
    """Bytes of the storages that operators made and that are in use, at the most; and what was launched."""

    def __init__(self, *inputs: torch.Tensor):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self.most_bytes = 0
        self.launched: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._alive = [(reference, size) for reference, size in self._alive if not reference.expired()]
        known = self._known | {reference.cdata for reference, _ in self._alive}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                self._alive.append((StorageWeakRef(leaf.untyped_storage()), leaf.untyped_storage().nbytes()))
                known.add(leaf.untyped_storage()._cdata)
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self._alive))
        name = function.overloadpacket.__name__
        if name not in NO_LAUNCH:
            self.launched.append(name)
        return result

    def instead_of(self, kernel) -> Callable[..., Callable]:
        """For Triton's `kernel[grid]`."""
        return lambda grid: lambda *arguments, **options: self.launched.append(kernel.fn.__name__)


def watch_flow_loss(
    lengths: list[int],
    parameter_dtype: torch.dtype = torch.bfloat16,
    *,
    trains_head: bool = True,
    accumulates: bool = False,
    block_rows: int | None = None,
    implementation: str = "fused",
) -> Watch:
    """Of an implementation that runs on CUDA, bfloat16 products."""
    boundaries = [0, *itertools.accumulate(lengths)]
    rows, count = boundaries[-1], len(lengths)

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    hidden, weight = empty(rows, WIDTH, dtype=torch.bfloat16), empty(VOCABULARY, WIDTH, dtype=parameter_dtype)
    head = Head.of(factors_of(weight, torch.bfloat16), None)
    targets, offsets = empty(rows, dtype=torch.int64), empty(count + 1, dtype=torch.int64)
    numbers = [empty(count) for _ in range(4)]
    inputs = SequenceInputs(*numbers, clip_low=0.2, clip_high=0.2, ratio="sequence", normaliser=1.0)
    need = NeededGradients(hidden=True, weight=trains_head, bias=False, log_z=True)
    total = empty(VOCABULARY, WIDTH, dtype=torch.float32) if accumulates else None
    watch = Watch(hidden, weight, head.weight, targets, offsets, *numbers, *([] if total is None else [total]))
    no_launch = mock.patch.object(
        type(finish_kernel), "__getitem__", lambda kernel, grid: watch.instead_of(kernel)(grid)
    )
    quack = mock.patch.object(
        projector, "_project_on", lambda device: lambda *arguments: watch.launched.extend(["gemm"] * len(arguments[2]))
    )
    with no_launch, quack, watch:
        choice = Choice(implementation, "it is watched")
        flow = FlowLossOverBlocks(hidden, targets, offsets, head, weight, None, inputs, choice, need, weight_sum=total)
        gradients = flow.run(sequence_blocks(boundaries, block_rows or flow.default_block_rows(boundaries, None)))
    assert gradients.hidden.dtype == torch.float32
    return watch
