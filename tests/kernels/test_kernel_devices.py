"""The ops on every device, in the types that training uses there, against float64 on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eager_head import exact_logits
from fastflow_kernels import linear_logprob, reference
from fastflow_kernels.matmul import accumulate_
from head_calls import assert_head_near, run_head
from implementations import needs_cuda
from kernel_problems import assert_matches, assert_near, make_problem, on_cpu, on_device, relative_error

LENGTHS = [40, 1, 0, 300, 7, 90]
# Widths: aligned, aligned but no multiple of a slice, not aligned. Vocabularies: no multiple of a tile.
SHAPES = pytest.mark.parametrize(("width", "vocabulary"), [(64, 1003), (200, 5000), (65, 257)])


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
@pytest.mark.parametrize("block_rows", [None, 64])
def test_flow_loss_in_float32(device, ratio, block_rows):
    problem = make_problem(LENGTHS, width=64, vocabulary=1003, ratio=ratio, with_bias=True).cast(torch.float32)
    got = on_device(problem, device).run(block_rows=block_rows)
    assert_matches(on_cpu(got), problem.oracle(), forward=1e-5, gradient=1e-4)


@SHAPES
@pytest.mark.parametrize("block_rows", [None, 64])
@pytest.mark.parametrize("head", [{}, {"with_bias": True, "softcap": 20.0, "temperature": 0.7}], ids=["plain", "all"])
def test_flow_loss_in_bfloat16(device, width, vocabulary, block_rows, head):
    """Log-probs come from float32 accumulators; gradients see one rounding of each factor and of the result."""
    problem = make_problem(LENGTHS, width=width, vocabulary=vocabulary, ratio="token_mean", **head)
    problem = problem.cast(torch.bfloat16)
    with exact_logits():  # on the CPU; test_cpu_bfloat16.py has the others
        got = on_cpu(on_device(problem, device).run(block_rows=block_rows))
    assert_near(got, problem.oracle(), logprob=1e-4, gradient=0.01)


@SHAPES
def test_linear_logprob_in_bfloat16(device, width, vocabulary):
    """Also for targets that are improbable by exp(-60), which the fused projection measures otherwise."""
    problem = make_problem([500], width=width, vocabulary=vocabulary, logit_limit=60.0).cast(torch.bfloat16)
    with exact_logits():
        got = run_head(linear_logprob, problem.tensors, device=device, block_rows=64)
    assert_head_near(got, run_head(reference.linear_logprob, problem.tensors, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_bitwise_equal(device, dtype):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=1003).cast(dtype), device)
    first, second = (on_cpu(problem.run(block_rows=64)) for _ in range(2))
    assert_matches(first, second, forward=0.0, gradient=0.0)


def test_accumulation_keeps_float32_and_its_place(device):
    generator = torch.Generator().manual_seed(0)
    direction, rows = (torch.randn(64, size, generator=generator).bfloat16() for size in (40, 24))
    total = torch.randn(40, 24, generator=generator)
    expected = total.double() + direction.double().t() @ rows.double()
    total = total.to(device)
    direction, rows = direction.to(device), rows.to(device)
    assert accumulate_(total, direction, rows, overwrite=False).data_ptr() == total.data_ptr()
    assert relative_error(total.cpu(), expected) <= (1e-6 if total.is_cuda else 2**-8)  # a CPU rounds the product


@needs_cuda
@SHAPES
@pytest.mark.parametrize("block_rows", [None, 64])
@pytest.mark.parametrize("head", [{}, {"with_bias": True, "softcap": 20.0, "temperature": 0.7}], ids=["plain", "all"])
def test_rows_in_bfloat16(monkeypatch, width, vocabulary, block_rows, head):
    """Logits rounded once, exponentials in their place; the target's logit is not among them."""
    monkeypatch.setenv("FASTFLOW_KERNELS", "rows")
    problem = make_problem(LENGTHS, width=width, vocabulary=vocabulary, ratio="token_mean", **head)
    problem = problem.cast(torch.bfloat16)
    got = on_cpu(on_device(problem, "cuda").run(block_rows=block_rows))
    assert_near(got, problem.oracle(), logprob=0.02, gradient=0.02)


@needs_cuda
def test_rows_in_bfloat16_do_not_round_the_target(monkeypatch):
    """A certain token: its logit is 40.1, of which bfloat16 products make 40."""
    monkeypatch.setenv("FASTFLOW_KERNELS", "rows")
    hidden = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[40.0, 0.1], [40.0, 0.0]], dtype=torch.bfloat16)
    targets = torch.tensor([0])
    got = linear_logprob(hidden.cuda(), weight.cuda(), targets.cuda())
    exact = reference.linear_logprob(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(got.cpu().double(), exact, rtol=0, atol=1e-6)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_never_waits_for_the_device(dtype):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=1003, with_bias=True).cast(dtype), "cuda")
    head = [problem.tensors[name].requires_grad_(name != "targets") for name in ("hidden", "weight", "targets")]

    def run():
        problem.run(block_rows=64)
        linear_logprob(*head, block_rows=64).sum().backward()

    run()  # compiles, and fills what is asked of a device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_offsets_in_pinned_memory_may_change_after_the_call():
    """A trainer may write the next batch's into the same memory while the device is still behind."""
    problem = on_device(make_problem([3, 5], width=64, vocabulary=1003).cast(torch.float32), "cuda")
    expected, _ = problem.run()
    pinned = problem.cu_seqlens.pin_memory()
    torch.cuda._sleep(100_000_000)
    result, _ = replace(problem, cu_seqlens=pinned).run()
    pinned.zero_()
    torch.testing.assert_close(result.logprob, expected.logprob)
