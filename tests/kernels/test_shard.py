"""Both ops with the head cut over ranks, uneven shards, against the whole head in float64."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from bench import shards
from fastflow_kernels import VocabularyShard, head_gradient, linear_logprob
from fastflow_kernels.shard import SumsUnderWay
from kernel_problems import make_problem
from shard_worker import check_rank

HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.parametrize("op", ["flow_loss", "linear_logprob"])
def test_the_sums_of_hidden_gradients_are_under_way_beside_the_products(op, a_group, monkeypatch):
    """Each starts ahead of its block's product for the head, and nobody waits for one until all blocks are through."""
    events: list[str] = []
    start, wait, accumulate_ = SumsUnderWay.start_, dist.Work.wait, head_gradient.accumulate_

    def noted_start(self, values):
        start(self, values)
        if self._started:
            events.append("sum starts")
            self._started[-1] = Noted(self._started[-1])

    class Noted:
        def __init__(self, work):
            self.work = work

        def wait(self):
            events.append("waited for")
            return wait(self.work)

    def noted_product(*arguments, **options):
        events.append("product")
        return accumulate_(*arguments, **options)

    monkeypatch.setattr(SumsUnderWay, "start_", noted_start)
    monkeypatch.setattr(head_gradient, "accumulate_", noted_product)
    problem = make_problem([4, 4, 4], vocabulary=11).cast(torch.float32)
    shard = VocabularyShard(0, a_group, largest=11)
    if op == "flow_loss":
        problem.run(needs=("hidden", "weight"), shard=shard, block_rows=4)
    else:
        hidden, weight = (problem.tensors[name].requires_grad_() for name in ("hidden", "weight"))
        linear_logprob(hidden, weight, problem.tensors["targets"], shard=shard, block_rows=4).sum().backward()
    assert events == ["sum starts", "product"] * 3 + ["waited for"] * 3


def test_the_ranks_meet_twice_for_the_statistics_of_a_block(a_group):
    """For the targets' logits, and for references and sums together."""
    problem = make_problem([4, 4, 4], vocabulary=11).cast(torch.float32)
    shard = VocabularyShard(0, a_group, largest=11)
    with shards.counted() as (calls, moved):
        problem.run(needs=("hidden", "weight"), shard=shard, block_rows=4)
    assert calls == {"waited for: reduction": 3, "waited for: gather": 3, "under way: reduction": 3}
    assert moved["under way: reduction"] == 12 * 5 * 4


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "implementation"), [([30, 41], "torch"), ([5, 64, 2], "torch"), ([70, 40, 1], "fused"), ([3, 68], "rows")]
)
def test_sharded_equals_whole(sizes, implementation, tmp_path):
    if implementation != "torch" and not HAS_TRITON:
        pytest.skip("needs triton: pip install 'fastflow[triton]'")
    arguments = (sizes, implementation, str(tmp_path / "rendezvous"))
    torch.multiprocessing.spawn(check_rank, args=arguments, nprocs=len(sizes))
