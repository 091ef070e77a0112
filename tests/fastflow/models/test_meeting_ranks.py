"""How ranks meet, and what they find where they are not the same."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest

from fastflow.errors import FastflowError
from fastflow.models.ranks import Ranks, join


@dataclass(frozen=True)
class Told(Ranks):
    """A rank to whom the others have said the same things as `others`."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_a_rank_that_holds_something_else_is_named():
    Told(0, 3, others=(7, 7)).check_same("weights or buffers in the policy", 7)
    with pytest.raises(FastflowError, match="rank 2 has other weights or buffers in the policy than rank 0; give all"):
        Told(0, 3, others=(7, 8)).check_same("weights or buffers in the policy", 7)


@pytest.mark.parametrize("local", ["1", "2"])
def test_ranks_that_do_not_meet(local, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FastflowError, match=r"rank 1 of 2 does not reach the others .*set GLOO_SOCKET_IFNAME"):
        join(on_cuda=False, timeout=1)
    assert ("GLOO_SOCKET_IFNAME" in os.environ) is (local == "2")  # on one machine, its host name may lead nowhere
