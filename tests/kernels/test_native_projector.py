"""The native library behind the ops: the same answers as in PyTorch alone, and who serves which call."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from fastflow_kernels import explain, flow_loss, linear_logprob
from fastflow_kernels.cpu import native
from implementations import by_those_on_the_cpu, needs_native
from kernel_problems import Problem, assert_matches, make_problem, norm_error, problems, relative_error


def run(problem: Problem, implementation: str, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFLOW_KERNELS", implementation)
        return problem.run(op=flow_loss, **options)


def log_scale(problem: Problem) -> Problem:
    """With the ratio at its bounds: the exponent of another doubles what two log-probs differ by."""
    problem.options.update(clip_low=0.0, clip_high=0.0)
    return problem


@needs_native
@settings(deadline=None, max_examples=100)
@given(problem=problems())
def test_float32_is_that_of_pytorch(problem):
    problem = log_scale(problem).cast(torch.float32)
    compiled, plain = run(problem, "native"), run(problem, "torch")
    assert relative_error(compiled[0].token_logprob, plain[0].token_logprob) <= 1e-6
    assert_matches(compiled, problem.oracle(), forward=1e-5, gradient=1e-4)


@needs_native
@pytest.mark.parametrize("head", [{}, {"with_bias": True, "softcap": 20.0, "temperature": 0.7}, {"padding": 5}])
@pytest.mark.parametrize("block_rows", [None, 32])
def test_float32_gradients_are_those_of_pytorch(head, block_rows):
    problem = make_problem([40, 0, 100, 1, 60], width=64, vocabulary=3001, ratio="token_mean", **head)
    problem = problem.cast(torch.float32)
    compiled, plain = (run(problem, name, block_rows=block_rows) for name in ("native", "torch"))
    assert_matches(compiled, plain, forward=1e-6, gradient=1e-6)


@needs_native
@pytest.mark.parametrize("block_rows", [None, 32])
def test_bfloat16_is_that_of_pytorch(block_rows):
    """Entries next to a rounding boundary may fall on either side of it: 2^-8 of a few of them."""
    problem = make_problem([40, 0, 100, 1, 60], width=64, vocabulary=3001).cast(torch.bfloat16)
    compiled, plain = (run(problem, name, block_rows=block_rows) for name in ("native", "torch"))
    assert relative_error(compiled[0].token_logprob, plain[0].token_logprob) <= 1e-6
    for name, gradient in plain[1].items():
        assert norm_error(compiled[1][name], gradient) <= 3e-4, name


@by_those_on_the_cpu
@pytest.mark.parametrize("options", [{}, {"temperature": 1.1}, {"temperature": 0.9}, {"softcap": 50.0}])
def test_confident_tokens_keep_their_digits(implementation, options):
    """log p = -e^-gap, for gaps at which 1 - e^-gap is 1 in float32, whatever becomes of the logits on the way."""
    gap = torch.linspace(8, 45, 400)
    hidden, weight = torch.stack([gap, torch.ones_like(gap)], dim=1), torch.tensor([[1.0, 0.3], [0.0, 0.3]])
    targets = torch.zeros(400, dtype=torch.int64)
    got = linear_logprob(hidden, weight, targets, **options)
    top, other = (hidden.double() @ weight.double().t()).unbind(1)
    if cap := options.get("softcap"):
        top, other = cap * torch.tanh(top / cap), cap * torch.tanh(other / cap)
    exact = -torch.log1p(((other - top) / options.get("temperature", 1.0)).exp())
    torch.testing.assert_close(got.double(), exact, rtol=3e-5, atol=0)


@by_those_on_the_cpu
@pytest.mark.parametrize("temperature", [1e-4, 1e-8, 1e-12, 1e4])
def test_extreme_temperatures(implementation, temperature):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 8, generator=generator), torch.randn(30, 8, generator=generator)
    targets = torch.randint(30, (20,), generator=generator)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    logprob = linear_logprob(*leaves, targets, temperature=temperature)
    gradients = torch.autograd.grad(logprob.sum(), leaves)
    exact = torch.log_softmax(hidden.detach().double() @ weight.detach().double().t() / temperature, dim=1)
    exact = exact.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprob.detach().double(), exact, rtol=1e-5, atol=1e-5 + 1e-6 / temperature)
    assert all(gradient.isfinite().all() for gradient in gradients)


@needs_native
def test_it_serves_the_cpu_in_the_types_it_knows(monkeypatch):
    monkeypatch.delenv("FASTFLOW_KERNELS", raising=False)
    rows, head = torch.zeros(2, 4), torch.zeros(3, 4)
    assert explain(rows, head).startswith("native: ")
    assert explain(rows.bfloat16(), head.bfloat16()).startswith("native: ")
    assert explain(rows.double(), head.double()).startswith("torch: ")


@needs_native
def test_float64_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", "native")
    with pytest.raises(RuntimeError, match=r"FASTFLOW_KERNELS=native cannot serve this call: .* float64"):
        linear_logprob(torch.zeros(2, 4).double(), torch.zeros(3, 4).double(), torch.tensor([0, 1]))


def test_without_the_library_pytorch_serves_and_says_why(monkeypatch):
    monkeypatch.delenv("FASTFLOW_KERNELS", raising=False)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    assert explain(torch.zeros(2, 4), torch.zeros(3, 4)) == "torch: no compiler"
