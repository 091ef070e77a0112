"""The model of a call's memory against the memory of the call, byte by byte; and how many launches a block takes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from fastflow_kernels import flow_loss
from fastflow_kernels.memory import flow_loss_workspace
from implementations import needs_cuda

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

from meta_calls import TILE, VOCABULARY, WIDTH, watch_flow_loss

SMALL = 64 * 2**10  # bytes a sequence, and 64 a row: what the model leaves out


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
    found = watch_flow_loss(lengths, parameter_dtype, trains_head=trains_head, block_rows=block_rows).most_bytes
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


@pytest.mark.parametrize("parameter_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lengths", [[900] * 5, [900] * 18, [900, 5000, 8000]], ids=["few rows", "several", "long"])
def test_a_sum_of_the_callers_is_not_the_calls(parameter_dtype, lengths):
    """The gradient of the head takes no memory, its sum over blocks neither; a cut sequence has its own."""
    call = {"parameter_dtype": parameter_dtype, "accumulates": True}
    found = watch_flow_loss(lengths, **call).most_bytes
    boundaries = [0, *itertools.accumulate(lengths)]
    workspace = flow_loss_workspace(boundaries, WIDTH, VOCABULARY, tile_vocabulary=TILE, **call)
    assert workspace.peak <= found <= workspace.peak + SMALL * len(lengths) + 64 * sum(lengths)
    assert workspace.head_gradient == workspace.head_sum == 0


def test_one_block_takes_no_more_than_full_ones_and_their_sum():
    """Which is why a call of few rows gets one."""
    one, several = (flow_loss_workspace(list(range(0, rows + 1, 96)), WIDTH, VOCABULARY) for rows in (4992, 2 * 3456))
    assert one.head_sum == 0 < several.head_sum
    assert one.block + one.head_gradient <= several.block + several.head_sum


@pytest.mark.parametrize(
    ("implementation", "projections", "most"),
    [
        ("fused", {"project_kernel": 1}, 9),
        ("rows", {"mm": 1, "row_kernel": 1}, 10),
        # this vocabulary is no multiple of a tile: the rest of it takes a product of its own
        ("hopper", {"gemm": 2}, 10),
    ],
)
@pytest.mark.parametrize("accumulates", [False, True])
def test_a_block_takes_few_launches(implementation, projections, most, accumulates):
    """Of which two more are the gradient's products; what is more in two blocks of a call is there once."""
    options = {"block_rows": 900, "implementation": implementation, "accumulates": accumulates}
    two, three = (Counter(watch_flow_loss([900] * count, **options).launched) for count in (2, 3))
    block = three - two
    assert block.total() <= most, block
    block.subtract(projections)
    assert block["mm"] + block["addmm"] == 2 and min(block.values()) >= 0


@needs_cuda
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("count", [5, 9], ids=["one block", "several"])
def test_the_model_is_within_five_percent_on_a_gpu(count, accumulates):
    """Of torch's allocator, whose blocks are larger than what they hold."""
    lengths, options = [900] * count, {"device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(sum(lengths), WIDTH, **options).requires_grad_()
    weight = (torch.randn(VOCABULARY, WIDTH, **options) * WIDTH**-0.5).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (sum(lengths),), device="cuda")
    boundaries = [0, *itertools.accumulate(lengths)]
    names = ("log_z", "log_target", "length_scale", "behaviour_logprob")
    numbers = {name: torch.zeros(count, device="cuda") for name in names}
    settings = {"clip_low": 0.2, "clip_high": 0.2, "normaliser": 1.0}
    total = torch.zeros(VOCABULARY, WIDTH, device="cuda") if accumulates else None
    for _ in range(2):  # the vendor's library takes its own memory in the first call
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = flow_loss(
            hidden, weight, targets, torch.tensor(boundaries), **numbers, **settings, accumulate_into=total
        )
        found = torch.cuda.max_memory_allocated() - before
        del result
    expected = flow_loss_workspace(boundaries, WIDTH, VOCABULARY, accumulates=accumulates)
    assert found == pytest.approx(expected.peak, rel=0.05)
