"""Weights without room in shared memory are refused before any is written, and the needs of one machine are summed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastflow import machine
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import FailedElsewhere, Ranks
from fastflow.rollout.vllm import room
from fastflow.rollout.vllm.room import Need, check_room, require_room
from fastflow.rollout.vllm.weights import SharedWeights
from small_models import make_causal_lm

MIB = 2**20
CPU = torch.device("cpu")
HERE, THERE, CONTAINER = ("here", 1), ("there", 1), ("here", 2)


class Told(Ranks):
    """A rank that the others have told what they need, and then whether they were refused."""

    def gather(self, value):
        if value is None or isinstance(value, str):
            return [value] * self.count
        self.seen.append(value)
        return [*self.others[: self.rank], value, *self.others[self.rank :]]


def told(rank: int, *others: Need | None) -> Told:
    ranks = Told(rank, 1 + len(others))
    object.__setattr__(ranks, "others", list(others))
    object.__setattr__(ranks, "seen", [])
    return ranks


@pytest.fixture
def free(monkeypatch):
    """Sets the free bytes of this machine's shared memory."""

    def leave(size: int) -> None:
        monkeypatch.setattr(machine.os, "statvfs", lambda path: SimpleNamespace(f_bavail=size, f_frsize=1))

    return leave


def of_this_machine(needed: int, left: int) -> Need:
    own = room._need(0)
    assert own is not None
    return Need(own.place, needed, left)


@pytest.mark.parametrize(("left", "said"), [(99, "99.0 MiB"), (199, "0.19 GiB")])
def test_two_ranks_with_room_for_one(free, left, said):
    free(left * MIB)
    ranks = told(0, of_this_machine(100 * MIB, left * MIB))
    with pytest.raises(
        FastflowError,
        match=rf"need 0.20 GiB of shared memory, 100.0 MiB for each of the 2 ranks of this machine, and /dev/shm has "
        rf"{said} left; enlarge it .*--shm-size.*, start fewer ranks on this machine, or sample",
    ) as refused:
        require_room(CPU, 100 * MIB, ranks)
    assert refused.value.on_all_ranks


def test_the_other_ranks_say_nothing(free):
    free(150 * MIB)
    with pytest.raises(FailedElsewhere):
        require_room(CPU, 100 * MIB, told(1, of_this_machine(100 * MIB, 150 * MIB)))


def test_what_fits_exactly_is_allowed(free):
    free(200 * MIB)
    ranks = told(0, of_this_machine(100 * MIB, 200 * MIB))
    require_room(CPU, 100 * MIB, ranks)
    assert ranks.seen == [of_this_machine(100 * MIB, 200 * MIB)]


def test_other_machines_and_containers_have_room_of_their_own():
    own = Need(HERE, 100, 150)
    check_room(own, [own, Need(THERE, 100, 150), Need(CONTAINER, 100, 150), None])
    with pytest.raises(FastflowError, match=r"each of the 2 ranks"):
        check_room(own, [own, Need(THERE, 100, 150), Need(HERE, 100, 150)])


def test_the_least_that_a_rank_saw_counts():
    own = Need(HERE, 100, 250)
    with pytest.raises(FastflowError, match=r"has 0.2 KiB left"):
        check_room(own, [own, Need(HERE, 100, 190)])


def test_a_gpu_and_a_system_without_such_memory_are_left_alone(monkeypatch):
    ranks = told(0, None)
    require_room(torch.device("cuda", 0), 2**60, ranks)
    assert not ranks.seen
    monkeypatch.setattr(machine.SHARED_MEMORY.__class__, "is_dir", lambda path: False)
    require_room(CPU, 2**60)


def test_gathered_weights_ask_before_they_take_any(free):
    free(MIB)
    policy = PackedModel(make_causal_lm())
    needed = sum(block.nbytes for block in SharedWeights(policy, gather=True).attach.blocks)
    free(2 * needed - 1)
    policy.ranks = told(0, of_this_machine(needed, 2 * needed - 1))
    with pytest.raises(FastflowError, match="each of the 2 ranks of this machine"):
        SharedWeights(policy, gather=True)
    assert policy.ranks.seen[0].needed == needed
