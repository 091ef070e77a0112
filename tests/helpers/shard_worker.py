"""One rank of a vocabulary-parallel call, to be started in a process of its own."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from bench.shards import in_turn
from fastflow_kernels import VocabularyShard, flow_loss, linear_logprob, reference
from fastflow_kernels.head import Head
from fastflow_kernels.implementation import Choice
from kernel_problems import FlowLoss, Problem, assert_matches, make_problem, relative_error


def check_rank(rank: int, sizes: list[int], implementation: str, rendezvous: str) -> None:
    """Compares this rank's part of both ops with the whole head in float64; raises where they differ."""
    torch.set_num_threads(1)
    cut_small_blocks(implementation)
    os.environ["FASTFLOW_KERNELS"] = implementation
    os.environ["TRITON_INTERPRET"] = "1"  # gloo reduces on the CPU, also where there is a GPU
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes))
    try:
        shard = VocabularyShard(start=sum(sizes[:rank]), group=dist.group.WORLD)
        own = slice(shard.start, shard.start + sizes[rank])
        knowing = replace(shard, largest=max(sizes))
        check_the_largest(sizes, rank, shard, knowing)
        for options in ({}, {"temperature": 0.7, "softcap": 20.0, "with_bias": True}, {"logit_limit": 60.0}):
            problem = make_problem([9, 0, 40, 3], width=7, vocabulary=sum(sizes), ratio="token_mean", **options)
            check_flow_loss(problem, shard, own)
            check_linear_logprob(problem, knowing, own)
            check_linear_logprob(problem, knowing, own, statistics=True)
        check_absent_targets(sum(sizes), shard, own)
        check_flow_loss(without_the_last_rank(sizes), shard, own)
        if implementation == "torch":
            check_linear_logprob(without_the_last_rank(sizes), shard, own)
            check_linear_logprob(without_the_last_rank(sizes), shard, own, statistics=True)
        dist.barrier()  # nobody leaves before the others are done
    finally:
        dist.destroy_process_group()
    os._exit(0)  # torch's threads may abort a rank at exit, where another ended first


def cut_small_blocks(implementation: str) -> None:
    """Several blocks also where no size is given, and such as would differ from rank to rank by their own shards."""
    projector = Choice(implementation, "").projector()
    projector._gradient_rows = classmethod(lambda cls, head, *_: 1000 // head.vocabulary)
    projector._forward_rows = classmethod(lambda cls, head, *_: 1000 // head.vocabulary)


def check_the_largest(sizes: list[int], rank: int, shard: VocabularyShard, knowing: VocabularyShard) -> None:
    """Asked of the group or given, the ranks cut the same blocks; of nobody where it is given."""
    head = Head.of(torch.zeros(sizes[rank], 7), None, shard=shard)
    assert head.like_the_largest_shard().weight.shape == (max(sizes), 7)
    assert knowing.largest_vocabulary(sizes[rank], torch.device("cpu")) == max(sizes)
    with pytest.raises(ValueError, match=r"largest is 1, but this rank's shard has .* rows; pass the rows of the larg"):
        replace(shard, largest=1).largest_vocabulary(max(sizes), torch.device("cpu"))


def without_the_last_rank(sizes: list[int]) -> Problem:
    """All of its logits are -inf."""
    alive = sum(sizes[:-1])
    problem = make_problem([9, 40], width=7, vocabulary=alive, padding=sizes[-1], with_bias=True, ratio="token_mean")
    problem.tensors["bias"][alive:] = -torch.inf
    del problem.options["vocabulary"]  # of the head: it would leave the padding out
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
        with in_turn():
            _, waited_for = cut(problem, own).run(op=flow_loss, shard=shard, block_rows=block_rows)
        assert all(torch.equal(waited_for[name], value) for name, value in got[1].items())
        total = torch.zeros_like(got[1]["weight"])
        _, others = cut(problem, own).run(op=flow_loss, shard=shard, block_rows=block_rows, accumulate_into=total)
        assert torch.equal(total, got[1]["weight"]) and torch.equal(others["hidden"], got[1]["hidden"])


def check_absent_targets(vocabulary: int, shard: VocabularyShard, own: slice) -> None:
    """A target that no rank holds makes NaN of its log-prob and of all that depends on it, and of nothing else."""
    problem = make_problem([9, 20, 3], width=7, vocabulary=vocabulary, with_bias=True)
    of_first, of_last = slice(0, 9), slice(29, 32)
    problem.tensors["targets"][4], problem.tensors["targets"][30] = -100, vocabulary + 1
    absent = torch.zeros(32, dtype=torch.bool).index_fill_(0, torch.tensor([4, 30]), True)
    part = cut(problem, own)
    result, gradients = part.run(op=flow_loss, shard=shard)
    assert torch.equal(result.token_logprob.isnan(), absent)
    assert result.loss.isnan() and torch.equal(result.logprob.isnan(), torch.tensor([True, False, True]))
    assert gradients["weight"].isnan().all() and gradients["bias"].isnan().all()
    assert gradients["hidden"][of_first].isnan().all() and gradients["hidden"][of_last].isnan().all()
    assert gradients["hidden"][9:29].isfinite().all()

    leaves = {name: part.tensors[name].detach().requires_grad_() for name in ("hidden", "weight", "bias")}
    logprob = linear_logprob(**leaves, targets=part.tensors["targets"], shard=shard)
    assert torch.equal(logprob.detach().isnan(), absent)
    logprob.sum().backward()
    assert torch.equal(leaves["hidden"].grad.isnan().all(dim=1), absent)
    assert leaves["hidden"].grad[~absent].isfinite().all() and leaves["weight"].grad.isnan().all()


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
