"""Both ops with the head cut over ranks, uneven shards, against the whole head in float64."""

from __future__ import annotations

import importlib.util

import pytest
import torch.multiprocessing

from shard_worker import check_rank

HAS_TRITON = importlib.util.find_spec("triton") is not None


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
