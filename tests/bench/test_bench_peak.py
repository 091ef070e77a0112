"""`bench.peak`: the peak of one call, whatever the process held before."""

from __future__ import annotations

import pytest
import torch

from bench import peak


@pytest.mark.parametrize("held", [0, 2**28])
def test_the_peak_is_of_the_call(device, held):
    """Also behind a larger peak: `held` bytes were in use at once before, and were given back."""
    torch.zeros(held, dtype=torch.uint8, device=device).fill_(1)
    found = peak.peak_of(lambda: torch.ones(2**25, device=device), device)
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 2**27 - 2**22 <= found <= 2**27 + 2**24


def test_nothing_is_told_where_the_system_tells_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "STATUS", tmp_path / "none")
    assert peak.peak_of(lambda: None, torch.device("cpu")) is None
