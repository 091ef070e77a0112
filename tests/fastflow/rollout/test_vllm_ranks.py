"""vLLM on several ranks: shares, gathered weights and lost processes, with a stand-in and with the real one."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.multiprocessing.reductions as reductions

from engine_of_ranks import all_of_vllm, expected, make_requests, spawn
from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.models.ranks import Ranks, alone, visible_gpu
from fastflow.rollout.shares import exchange, share_of
from fastflow.rollout.vllm import gathered


@pytest.mark.distributed
def test_each_of_two_ranks_has_an_engine_of_its_own():
    spawn(2, all_of_vllm)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[4, 4], [1], [5, 1, 3], [2] * 7], ids=str)
def test_shares_are_even_and_put_together_again(count, sizes):
    requests = [request for size in sizes for request in make_requests(1, size)]

    class Others(Ranks):
        def gather(self, value):
            return [flatten(groups_of(share_of(requests, Ranks(rank, count)))) for rank in range(count)]

    def groups_of(share):
        def one(seed):
            return Trajectory(np.array([seed]), np.zeros(1, np.float32), "stop", seed)

        return [Group(request.prompt, tuple(map(one, request.seeds))) for request in share]

    shares = [share_of(requests, Ranks(rank, count)) for rank in range(count)]
    held = [sum(len(request.seeds) for request in share) for share in shares]
    assert sum(held) == sum(sizes) and max(held) - min(held) <= 1
    for rank, share in enumerate(shares):
        groups = exchange(requests, groups_of(share), Others(rank, count))
        assert [group.prompt for group in groups] == [request.prompt for request in requests]
        assert [[one.seed for one in group.trajectories] for group in groups] == [list(one.seeds) for one in requests]
    assert expected(requests)


def test_a_child_is_no_rank_and_sees_one_gpu():
    environment = {"RANK": "1", "LOCAL_RANK": "1", "ROLE_NAME": "x", "TORCHELASTIC_RUN_ID": "y", "LOCAL_CACHE": "kept"}
    alone(environment)
    assert environment == {"LOCAL_CACHE": "kept"}
    assert visible_gpu(1, {}) == "1"
    assert visible_gpu(1, {"CUDA_VISIBLE_DEVICES": "4, GPU-abc"}) == "GPU-abc"


def test_a_block_of_any_gpu_is_one_of_the_childs_first(monkeypatch):
    names = list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
    assert names[gathered.STORAGE_DEVICE] == "storage_device"
    held = tuple(range(100, 100 + len(names)))
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: (list, held))
    rebuild, sent = gathered._OfFirstDevice(torch.zeros(1)).__reduce__()
    assert rebuild is list
    assert sent == (*held[: gathered.STORAGE_DEVICE], 0, *held[gathered.STORAGE_DEVICE + 1 :])
