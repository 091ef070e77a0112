"""vLLM on several ranks: shares, gathered weights and lost processes, with a stand-in and with the real one."""

from __future__ import annotations

import inspect
import json
import os
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing.reductions as reductions

from cli_runs import ROOT, options, settings, start
from engine_of_ranks import all_of_vllm, expected, make_requests
from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.models.ranks import Ranks, alone, visible_gpu
from fastflow.rollout.shares import exchange, share_of
from fastflow.rollout.vllm import weights
from rank_runs import finish
from rank_worker import spawn
from resumed_runs import metrics_of, newest_save, tensors_of
from small_models import save_model
from vllm_runs import HEAD_DIM, needs_vllm


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
    assert names[weights.STORAGE_DEVICE] == "storage_device"
    held = tuple(range(100, 100 + len(names)))
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: (list, held))
    rebuild, sent = weights._OfFirstDevice(torch.zeros(1)).__reduce__()
    assert rebuild is list
    assert sent == (*held[: weights.STORAGE_DEVICE], 0, *held[weights.STORAGE_DEVICE + 1 :])


def begin(home, name: str, devices: int, *, loses: str = "", **changes):
    """`fastflow train` on vLLM, with a reward that loses engines."""
    if loses != "always" and not (home / "model").exists():  # stand-ins have the default
        save_model(home / "model", head_dim=HEAD_DIM)
    values = settings(home, **{"rollout.engine": "vllm", "run.samples_every": 1, "run.steps": 2, **changes})
    values |= {"run.output": home / name, "objective.reward": "losing:reward"}
    path = os.pathsep.join(entry for entry in (str(ROOT), *sys.path) if entry)
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "dumb", "COLUMNS": "400", "LOSES": loses}
    return start([*options(values), *(["--devices", str(devices)] if devices > 1 else [])], env=environment)


def responses(run) -> list[str]:
    return [json.loads(line)["response"] for line in (run / "samples.jsonl").read_text().splitlines()]


@needs_vllm
@pytest.mark.distributed
def test_two_ranks_train_as_one_though_an_engine_is_lost(tmp_path):
    """float32, so that the ranks' other order of sums moves no draw: the responses are the same, the weights nearly."""
    finish(begin(tmp_path, "one", 1))
    said = finish(begin(tmp_path, "two", 2, loses="once"))
    assert said.count("rank 0: the vLLM process died by signal SIGKILL") == 1 and "vLLM is restarted (1 of" in said
    one, two = tmp_path / "one", tmp_path / "two"
    assert responses(two) == responses(one)
    assert len(metrics_of(two)) == 2
    found, right = (tensors_of(newest_save(run)) for run in (two, one))
    for name in right:
        if name.startswith("policy"):
            torch.testing.assert_close(found[name], right[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.distributed
def test_an_engine_that_stays_dead_ends_all_ranks_with_a_save(tmp_path):
    process = begin(tmp_path, "run", 2, loses="always", **{"run.steps": 5, "rollout.restarts": 1})
    said = finish(process, code=2)
    assert said.count("rank 1: it died at Ready; that was loss 2 in a row, and rollout.restarts = 1 allows no") == 1
    assert said.count("the policy after step 1 (1 update) is in") == 1
    assert "lost another rank" not in said and "stops alone" not in said
    state = json.loads((newest_save(tmp_path / "run") / "trainer" / "state.json").read_text())
    assert state["step"] == 1 and state["ranks"] == 2
