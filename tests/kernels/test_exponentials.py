"""Unnormalised probabilities in place, compiled and in PyTorch, against float64."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels.cpu import native
from fastflow_kernels.exponentials import exponentials_

NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(native.library() is None, reason=f"needs the native library: {native.why_not()}"),
)


@pytest.fixture(params=["torch", NATIVE])
def implementation(request, monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", request.param)


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


def test_what_is_not_finite(implementation):
    inf, nan = torch.inf, torch.nan
    got = exponentials_(torch.tensor([[-inf, 0.0], [nan, 0.0], [inf, 0.0], [-inf, -inf]]))
    torch.testing.assert_close(got[0], torch.tensor([0.0, 1.0]))
    assert got[1:].isnan().any(dim=1).all()
    assert got[[1, 3]].isnan().all()
