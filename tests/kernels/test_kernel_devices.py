"""The ops on every device, in the types that training uses there, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import flow_loss, linear_logprob
from kernel_problems import GRADIENTS, assert_matches, make_problem, on_cpu, on_device, relative_error

LENGTHS = [40, 1, 0, 300, 7, 90]


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
@pytest.mark.parametrize("block_rows", [None, 64])
def test_flow_loss_in_float32(device, ratio, block_rows):
    problem = make_problem(LENGTHS, width=64, vocabulary=1003, ratio=ratio, with_bias=True).cast(torch.float32)
    got = on_device(problem, device).run(block_rows=block_rows)
    assert_matches(on_cpu(got), problem.oracle(), forward=1e-5, gradient=1e-4)


def test_flow_loss_in_bfloat16(device):
    """Log-probs come from float32 accumulators; gradients see one rounding of each factor and of the result."""
    problem = make_problem(LENGTHS, width=64, vocabulary=1003, ratio="token_mean").cast(torch.bfloat16)
    result, gradients = on_cpu(on_device(problem, device).run(block_rows=64))
    expected, expected_gradients = problem.oracle()
    assert (result.token_logprob - expected.token_logprob.detach()).abs().max() <= 2e-3
    for name, gradient in expected_gradients.items():
        assert relative_error(gradients[name], gradient) <= 0.02, name


def test_linear_logprob_in_bfloat16(device):
    problem = make_problem([500], width=64, vocabulary=1003).cast(torch.bfloat16)
    hidden, weight, targets = (problem.tensors[name].to(device) for name in ("hidden", "weight", "targets"))
    hidden.requires_grad_(), weight.requires_grad_()
    upstream = torch.linspace(-1, 1, 500, device=device)
    linear_logprob(hidden, weight, targets, block_rows=64).backward(upstream)

    exact = [tensor.detach().cpu().double().requires_grad_() for tensor in (hidden, weight)]
    logprob = torch.log_softmax(exact[0] @ exact[1].t(), 1).gather(1, targets.cpu().unsqueeze(1)).squeeze(1)
    logprob.backward(upstream.cpu().double())
    for got, want in zip((hidden, weight), exact, strict=True):
        assert relative_error(got.grad.cpu(), want.grad) <= 0.02


def test_two_runs_are_bitwise_equal(device):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=1003).cast(torch.float32), device)
    first, second = (on_cpu(problem.run(op=flow_loss, block_rows=64)) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(first[1][name], second[1][name]) for name in GRADIENTS if name in first[1])
