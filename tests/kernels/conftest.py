"""What the tests of the ops share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from implementations import Implementation

# `bench` is not installed: its interpreter is imported from the repository's root, as tests/bench does
sys.path.append(str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def implementation(request, monkeypatch) -> Implementation:
    """One of those that a mark of implementations.py names; every op takes it."""
    request.param.take(monkeypatch)
    return request.param


@pytest.fixture
def a_group():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
