"""Logits of a few rows, and unnormalised probabilities in place, compiled and in PyTorch, against float64."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import matmul
from fastflow_kernels.sampling import exponentials_, head_logits
from implementations import by_those_on_the_cpu


@by_those_on_the_cpu
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 1000), (3, 70_001)])
def test_shares_are_the_softmax(implementation, shape, temperature):
    logits = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = torch.softmax(logits.double() / temperature, dim=1)
    weights = exponentials_(logits, temperature)
    assert weights.data_ptr() == logits.data_ptr()
    rounding = 3e-7 * float(20 / temperature)  # of logits up to 20, over the temperature
    assert (weights >= 0).all()
    assert (weights.max(dim=1).values == 1).all()
    share = weights.double() / weights.double().sum(dim=1, keepdim=True)
    torch.testing.assert_close(share, exact, rtol=rounding, atol=1e-37)


@by_those_on_the_cpu
def test_what_is_not_finite(implementation):
    inf, nan = torch.inf, torch.nan
    got = exponentials_(torch.tensor([[-inf, 0.0], [nan, 0.0], [inf, 0.0], [-inf, -inf]]))
    torch.testing.assert_close(got[0], torch.tensor([0.0, 1.0]))
    assert got[1:].isnan().any(dim=1).all()
    assert got[[1, 3]].isnan().all()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_logits_of_a_head(dtype, bound, with_bias):
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=random, dtype=torch.float64).to(dtype) for size in (5, 33))
    bias = torch.randn(33, generator=random, dtype=torch.float64).to(dtype) if with_bias else None
    logits = head_logits(hidden.requires_grad_(), weight.requires_grad_(), bias)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and not logits.requires_grad
    exact = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert (logits.double() - exact).abs().max() <= bound * exact.abs().max()


def test_logits_of_rows_in_bfloat16_under_a_wider_head(monkeypatch):
    """They enter the product in the narrower type where this CPU multiplies that, else in float32."""
    monkeypatch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: False)
    hidden, weight = torch.randn(3, 8).bfloat16(), torch.randn(11, 8)
    torch.testing.assert_close(head_logits(hidden, weight), hidden.float() @ weight.t())
