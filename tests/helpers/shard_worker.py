"""One rank of a vocabulary-parallel call, to be started in a process of its own."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from fastflow_kernels import VocabularyShard, flow_loss, linear_logprob, projector, reference
from kernel_problems import FlowLoss, Problem, assert_matches, make_problem, relative_error


def check_rank(rank: int, sizes: list[int], implementation: str, rendezvous: str) -> None:
    """Compares this rank's part of both ops with the whole head in float64; raises where they differ."""
    torch.set_num_threads(1)
    projector.SHARDED_ROWS = 16  # several blocks also where no size is given
    os.environ["FASTFLOW_KERNELS"] = implementation
    os.environ["TRITON_INTERPRET"] = "1"  # gloo reduces on the CPU, also where there is a GPU
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes))
    try:
        shard = VocabularyShard(start=sum(sizes[:rank]), group=dist.group.WORLD)
        own = slice(shard.start, shard.start + sizes[rank])
        for options in ({}, {"temperature": 0.7, "softcap": 20.0, "with_bias": True}, {"logit_limit": 60.0}):
            problem = make_problem([9, 0, 40, 3], width=7, vocabulary=sum(sizes), ratio="token_mean", **options)
            check_flow_loss(problem, shard, own)
            check_linear_logprob(problem, shard, own)
            check_linear_logprob(problem, shard, own, statistics=True)
        if implementation == "torch":
            check_linear_logprob(without_the_last_rank(sizes), shard, own)
            check_linear_logprob(without_the_last_rank(sizes), shard, own, statistics=True)
    finally:
        dist.destroy_process_group()


def without_the_last_rank(sizes: list[int]) -> Problem:
    """All of its logits are -inf."""
    problem, alive = make_problem([9, 40], width=7, vocabulary=sum(sizes), with_bias=True), sum(sizes[:-1])
    problem.tensors["bias"][alive:] = -torch.inf
    problem.tensors["targets"] %= alive
    return problem


def cut(problem: Problem, own: slice) -> Problem:
    tensors = dict(problem.cast(torch.float32).tensors)
    for name in ("weight", "bias"):
        tensors[name] = None if tensors[name] is None else tensors[name][own]
    return Problem(tensors, problem.cu_seqlens, problem.options)


def check_flow_loss(problem: Problem, shard: VocabularyShard, own: slice) -> None:
    result, expected = problem.oracle()
    expected = {name: value[own] if name in ("weight", "bias") else value for name, value in expected.items()}
    for block_rows in (None, 16):  # also with a sequence longer than a block
        got = cut(problem, own).run(op=flow_loss, shard=shard, block_rows=block_rows)
        assert_matches(got, (FlowLoss(*(value.detach() for value in result)), expected), forward=1e-5, gradient=1e-4)


def check_linear_logprob(problem: Problem, shard: VocabularyShard, own: slice, statistics: bool = False) -> None:
    names = ("hidden", "weight", "bias", "targets")
    options = {name: problem.options[name] for name in ("temperature", "softcap") if name in problem.options}
    outcomes = []
    for part, op, extra in (
        (cut(problem, own), linear_logprob, {"shard": shard}),
        (problem, reference.linear_logprob, {}),
    ):
        leaves = {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in part.tensors.items()
            if name in names and value is not None
        }
        found = op(**leaves, **options, **extra, statistics=statistics)
        outputs = [found[0], *found[1]] if statistics else [found]
        upstream = torch.linspace(-1, 1, len(outputs[0]))
        sum((output * upstream.roll(place)).sum() for place, output in enumerate(outputs[:3])).backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if name != "targets"}
        outcomes.append(([output.detach() for output in outputs], gradients))
    for got, want in zip(outcomes[0][0], outcomes[1][0], strict=True):
        assert torch.equal(got, want) if want.isinf().all() else relative_error(got, want) <= 1e-5
    for name, gradient in outcomes[1][1].items():
        expected = gradient[own] if name in ("weight", "bias") else gradient
        assert relative_error(outcomes[0][1][name], expected) <= 1e-4, name
