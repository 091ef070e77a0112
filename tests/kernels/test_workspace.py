"""The model of a call's memory against the memory of the call, byte by byte, on tensors that have none."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.flow_loss_pass import FlowLossPass, NeededGradients
from fastflow_kernels.head import Head
from fastflow_kernels.implementation import Choice
from fastflow_kernels.sequence_terms import SequenceInputs
from fastflow_kernels.workspace import flow_loss_workspace

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

from fastflow_kernels.gpu.finish import finish_kernel

WIDTH, VOCABULARY = 1536, 151936
TILE = 64  # columns of the tile that is taken where there is no device
SMALL = 64 * 2**10  # bytes a sequence and 64 a row: what the model leaves out


class Alive(TorchDispatchMode):
    """Bytes of the storages that operators made and that are still in use: now and at the most."""

    def __init__(self, *inputs: torch.Tensor):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._alive = [(reference, size) for reference, size in self._alive if not reference.expired()]
        known = self._known | {reference.cdata for reference, _ in self._alive}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                self._alive.append((StorageWeakRef(leaf.untyped_storage()), leaf.untyped_storage().nbytes()))
                known.add(leaf.untyped_storage()._cdata)
        self.most = max(self.most, sum(size for _, size in self._alive))
        return result


def most_alive(lengths: list[int], parameter_dtype: torch.dtype, *, trains_head: bool, block_rows: int | None) -> int:
    """Of a call of the implementation `fused` on meta tensors, without its kernels."""
    boundaries = [0, *itertools.accumulate(lengths)]
    rows, count = boundaries[-1], len(lengths)

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    hidden, weight = empty(rows, WIDTH, dtype=torch.bfloat16), empty(VOCABULARY, WIDTH, dtype=parameter_dtype)
    head = Head.of(weight, None, torch.bfloat16)
    targets, offsets = empty(rows, dtype=torch.int64), empty(count + 1, dtype=torch.int64)
    numbers = [empty(count) for _ in range(4)]
    inputs = SequenceInputs(*numbers, clip_low=0.2, clip_high=0.2, ratio="sequence", normaliser=1.0)
    need = NeededGradients(hidden=True, weight=trains_head, bias=False, log_z=True)
    known = (hidden, weight, head.weight, targets, offsets, *numbers)
    no_launch = mock.patch.object(type(finish_kernel), "__getitem__", lambda kernel, grid: lambda *a, **named: None)
    with no_launch, Alive(*known) as alive:
        choice = Choice("fused", "it is what the model is of")
        flow = FlowLossPass(hidden, targets, offsets, head, weight, None, inputs, choice, need)
        gradients = flow.run(sequence_blocks(boundaries, block_rows or flow.default_block_rows(boundaries, None)))
    assert gradients.hidden.dtype == torch.float32
    return alive.most


@pytest.mark.parametrize("parameter_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "trains_head", "block_rows"),
    [
        ([900] * 5, True, None),  # one block
        ([900] * 18, True, None),  # several
        ([900] * 18, False, None),  # of a frozen head
        ([900, 5000, 8000], True, None),  # a sequence that is longer than the default block
        ([300] * 4, True, 500),
    ],
    ids=["one block", "several", "frozen head", "long", "asked for"],
)
def test_the_model_is_the_call(parameter_dtype, lengths, trains_head, block_rows):
    found = most_alive(lengths, parameter_dtype, trains_head=trains_head, block_rows=block_rows)
    workspace = flow_loss_workspace(
        [0, *itertools.accumulate(lengths)],
        WIDTH,
        VOCABULARY,
        parameter_dtype=parameter_dtype,
        trains_head=trains_head,
        block_rows=block_rows,
        tile_vocabulary=TILE,
    )
    assert workspace.peak <= found <= workspace.peak + SMALL * len(lengths) + 64 * sum(lengths)


def test_one_block_takes_no_more_than_full_ones_and_their_sum():
    """Which is why a call of few rows gets one."""
    one, several = (flow_loss_workspace(list(range(0, rows + 1, 96)), WIDTH, VOCABULARY) for rows in (4992, 2 * 3456))
    assert one.head_sum == 0 < several.head_sum
    assert one.block + one.head_gradient <= several.block + several.head_sum
