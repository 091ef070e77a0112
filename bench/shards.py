"""What a head that is cut over ranks costs in reductions: how many, their bytes, and what their overlap spares.

    python -m bench.shards [--ranks 2] [--shape NxDxV] [--block-rows R] [--repeats N]

gloo on a CPU, one thread a rank. Each rank holds V / ranks rows of the head. flow_loss and backward, in turns: as it
is, with the sum of the hidden states' gradients under way beside what follows; waiting for each sum at once; and the
same shard on its own, without a group. Both of the first give the same bits. Exits with 1 where they do not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from bench.collectives import watched
from bench.options import count, parse_shape
from bench.problem import Problem, make_problems
from bench.processes import run_ranks
from bench.shapes import Shape

WAYS = ("overlapped", "in turn", "alone")
COLLECTIVES = {"all_reduce": "reduction", "all_gather_into_tensor": "gather", "all_gather_single": "gather"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument("--shape", type=parse_shape, default=Shape(1024, 1024, 32000), metavar="NxDxV")
    parser.add_argument("--block-rows", type=count, default=256, help="rows of a block (default: 256)")
    parser.add_argument("--repeats", type=count, default=7, help="timed rounds (default: 7)")
    options = parser.parse_args(arguments)
    if options.ranks < 2:
        parser.error("--ranks is 2 or more: one rank has nobody to share with")
    found = run_ranks(be_a_rank, options)
    print(f"{options.shape} in float32 over {options.ranks} ranks, blocks of {options.block_rows} rows")
    for name, calls in found["calls"].items():
        print(f"{calls:4} {name:28} {found['bytes'][name] / 1e6:9.2f} MB a rank")
    for way in WAYS:
        seconds = found["seconds"][way]
        print(f"{way:12} {statistics.median(seconds):7.3f} s (least {min(seconds):.3f})")
    print(f"the same bits: {'yes' if found['same'] else 'no'}")
    return int(not found["same"])


def be_a_rank(rank: int, port: int, options: argparse.Namespace, sender: Any) -> None:
    from fastflow_kernels import VocabularyShard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=options.ranks)
    problem = make_problems(options.shape, torch.float32, "cpu")[0]
    rows = -(-options.shape.vocabulary // options.ranks)
    start = rank * rows
    head = problem.weight.detach()[start : start + rows].clone().requires_grad_()
    shard = VocabularyShard(start, dist.group.WORLD, largest=rows)

    def call(shard: VocabularyShard | None) -> list[torch.Tensor]:
        return gradients(problem, head, shard, options.block_rows)

    with counted() as (calls, moved):
        overlapped = call(shard)
    with in_turn():
        same = all(map(torch.equal, overlapped, call(shard)))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        seconds["overlapped"].append(timed(lambda: call(shard)))
        with in_turn():
            seconds["in turn"].append(timed(lambda: call(shard)))
        seconds["alone"].append(timed(lambda: call(None)))
    everywhere = torch.tensor(float(same))
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    if rank == 0:
        sender.send({"calls": dict(calls), "bytes": dict(moved), "seconds": seconds, "same": bool(everywhere)})
    dist.barrier()  # nobody leaves before the others are done
    dist.destroy_process_group()


def gradients(problem: Problem, head: torch.Tensor, shard: Any, block_rows: int) -> list[torch.Tensor]:
    """Of hidden states and head, after the loss; without a shard, of targets among the head's own rows."""
    from fastflow_kernels import flow_loss

    targets = problem.targets if shard is not None else problem.targets % len(head)
    inputs = (problem.hidden, head, targets, problem.cu_seqlens)
    result = flow_loss(*inputs, **problem.loss_inputs, shard=shard, block_rows=block_rows)
    return [result.loss.detach(), *torch.autograd.grad(result.loss, (problem.hidden, head))]


def timed(call: Callable[[], object]) -> float:
    """Seconds of the slowest rank, all of which begin together."""
    dist.barrier()
    started = time.perf_counter()
    call()
    took = torch.tensor(time.perf_counter() - started)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


@contextmanager
def in_turn() -> Iterator[None]:
    """Every sum is waited for where it starts."""
    from fastflow_kernels.shard import SumsUnderWay

    start = SumsUnderWay.start_

    def start_and_wait(self: SumsUnderWay, values: torch.Tensor) -> None:
        start(self, values)
        self.wait()

    SumsUnderWay.start_ = start_and_wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        SumsUnderWay.start_ = start  # type: ignore[method-assign]


@contextmanager
def counted() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """The collectives of a call and the bytes that a rank gives to them, by what they do."""
    calls: Counter[str] = Counter()
    moved: Counter[str] = Counter()

    def note(name: str, *tensors: torch.Tensor, **options: Any) -> None:
        what = f"{'under way' if options.get('async_op') else 'waited for'}: {COLLECTIVES[name]}"
        calls[what] += 1
        moved[what] += tensors[-1].nbytes

    with watched(COLLECTIVES, note):
        yield calls, moved


if __name__ == "__main__":
    sys.exit(main())
