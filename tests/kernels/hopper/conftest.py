"""The Hopper path where it can run: on sm_90, else on the CPU, its projection emulated and the rest interpreted."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels.hopper.support import device_obstacle
from implementations import COMPILED, HOPPER, round_in_the_interpreter, triton_obstacle


@pytest.fixture
def device() -> torch.device:
    """One alone: Triton's kernels either are interpreted in a process, or are not."""
    if obstacle := device_obstacle(HOPPER.device, torch.bfloat16):
        pytest.skip(f"the Hopper path cannot run here: {obstacle}")
    return HOPPER.device


@pytest.fixture(autouse=True)
def rounding_interpreter(monkeypatch):
    if obstacle := triton_obstacle():
        pytest.skip(obstacle)
    if not COMPILED:
        round_in_the_interpreter(monkeypatch)


@pytest.fixture
def hopper(monkeypatch):
    """Both ops take the path."""
    HOPPER.take(monkeypatch)
