"""flow_loss with `accumulate_into`: the head's gradient goes into a sum of the caller's; all else is as without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bench.memory import poisoned
from fastflow_kernels import flow_loss, reference
from implementations import by_those_in_float32
from kernel_problems import GRADIENTS, assert_matches, make_problem, on_cpu, on_device, problems, relative_error

OTHERS = ("hidden", "bias", "log_z")


def leaves_of(problem, needs=GRADIENTS):
    return {
        name: value if value is None else value.detach().clone().requires_grad_(name in needs)
        for name, value in problem.tensors.items()
    }


def call(problem, leaves, op=flow_loss, **extra):
    return op(cu_seqlens=problem.cu_seqlens, **leaves, **problem.options, **extra)


def into_zeros(problem, dtype=torch.float32, op=flow_loss, **extra):
    """The result, the gradients that autograd has handed out, and the sum."""
    leaves = leaves_of(problem)
    total = torch.zeros_like(leaves["weight"], dtype=dtype, requires_grad=False)
    result = call(problem, leaves, op, accumulate_into=total, **extra)
    result.loss.backward()
    assert leaves["weight"].grad is None
    gradients = {name: leaves[name].grad for name in GRADIENTS if leaves[name] is not None and name != "weight"}
    return result, gradients | {"weight": total}


@settings(deadline=None, max_examples=60)
@given(problem=problems(), block_rows=st.sampled_from([1, 3, 64, None]), count=st.integers(1, 3))
def test_micro_batches_add_up_to_their_gradients_in_float64(problem, block_rows, count):
    """Each adds to what is there; the other gradients are those of the ordinary call, to the bit."""
    leaves = leaves_of(problem)
    total = torch.full_like(leaves["weight"], 0.5, requires_grad=False)
    for _ in range(count):
        call(problem, leaves, accumulate_into=total, block_rows=block_rows).loss.backward()
    _, expected = problem.oracle()
    assert relative_error(total - 0.5, count * expected["weight"]) <= 1e-11
    _, ordinary = problem.run(block_rows=block_rows)
    for name in OTHERS:
        if leaves[name] is not None:
            assert relative_error(leaves[name].grad, count * ordinary[name]) <= 1e-15


@by_those_in_float32
@pytest.mark.parametrize("block_rows", [4, 16, None], ids=["a sequence is cut", "several blocks", "one block"])
@pytest.mark.parametrize("options", [{}, {"with_bias": True, "padding": 3, "softcap": 5.0}], ids=["plain", "all"])
def test_the_first_of_them_is_the_ordinary_gradient_to_the_bit(implementation, block_rows, options):
    """0 + a + b are the same sums as a + b. But on a GPU, where a vendor's product that adds may be cut otherwise."""
    problem = make_problem([3, 0, 9, 40, 1], width=17, vocabulary=70, ratio="token_mean", **options)
    problem = on_device(problem.cast(torch.float32), implementation.device)
    got, ordinary = into_zeros(problem, block_rows=block_rows), problem.run(block_rows=block_rows)
    vendors = 1e-6 if implementation.device.type == "cuda" else 0.0
    assert_matches(on_cpu(got), on_cpu(ordinary), forward=0.0, gradient=vendors)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_adds_the_gradient_once_or_is_refused(reentrant):
    problem = make_problem([3, 9], width=8, vocabulary=70)
    leaves = leaves_of(problem)
    total = torch.zeros_like(leaves["weight"], requires_grad=False)

    def loss(hidden):
        return call(problem, leaves | {"hidden": hidden}, accumulate_into=total).loss

    result = torch.utils.checkpoint.checkpoint(loss, leaves["hidden"], use_reentrant=reentrant)
    if not reentrant:
        with pytest.raises(RuntimeError, match="leave this call out of the checkpoint"):
            result.backward()
        return
    result.backward()
    assert relative_error(total, problem.oracle()[1]["weight"]) <= 1e-11


def test_a_bfloat16_head_is_not_rounded():
    """Its sum over blocks is the same float32 sum; the ordinary call rounds that at the end."""
    problem = make_problem([9, 16, 7], width=8, vocabulary=70).cast(torch.bfloat16)
    _, gradients = into_zeros(problem, block_rows=16)
    _, ordinary = problem.run(block_rows=16)
    assert torch.equal(gradients["weight"].bfloat16(), ordinary["weight"])
    assert not torch.equal(gradients["weight"], ordinary["weight"].float())
    assert torch.equal(gradients["hidden"], ordinary["hidden"])


@pytest.mark.parametrize("block_rows", [None, 3], ids=["whole sequences", "cut ones"])
def test_rows_of_padding_stay_as_they_are(block_rows):
    problem = make_problem([5, 4], width=6, vocabulary=11, padding=3).cast(torch.float32)
    leaves = leaves_of(problem)
    total = torch.full_like(leaves["weight"], 7.0, requires_grad=False)
    with poisoned("cpu"):
        call(problem, leaves, accumulate_into=total, block_rows=block_rows)
    assert (total[11:] == 7.0).all() and (total[:11] != 7.0).any(dim=1).all()


def test_no_rows_add_nothing():
    problem = make_problem([0, 0], width=6, vocabulary=11).cast(torch.float32)
    leaves = leaves_of(problem)
    total = torch.full_like(leaves["weight"], 7.0, requires_grad=False)
    call(problem, leaves, accumulate_into=total).loss.backward()
    assert (total == 7.0).all()


def test_a_tied_embedding_adds_its_part_in_the_backward_pass():
    """Into the same tensor: weight.grad is the sum of both, over two micro-batches."""
    problem = make_problem([6, 5], width=6, vocabulary=11).cast(torch.float64)
    tokens = torch.randint(0, 11, (2, 11), generator=torch.Generator().manual_seed(3))

    def update(op, accumulates):
        leaves = leaves_of(problem, needs=("weight", "log_z"))
        weight = leaves.pop("weight")
        weight.grad = torch.zeros_like(weight)
        for ids in tokens:
            hidden = torch.tanh(weight[ids])
            extra = {"accumulate_into": weight.grad} if accumulates else {}
            call(problem, {**leaves, "hidden": hidden, "weight": weight}, op, **extra).loss.backward()
        return weight.grad

    torch.testing.assert_close(update(flow_loss, True), update(reference.flow_loss, False), rtol=1e-11, atol=1e-13)


def test_nothing_is_added_without_gradients():
    problem = make_problem([5, 4]).cast(torch.float32)
    leaves = leaves_of(problem)
    total = torch.zeros_like(leaves["weight"], requires_grad=False)
    with torch.no_grad():
        result = call(problem, leaves, accumulate_into=total)
    assert not total.any() and not result.loss.requires_grad


def test_the_head_may_be_all_that_is_trained():
    problem = make_problem([5, 4]).cast(torch.float32)
    leaves = leaves_of(problem, needs=("weight",))
    total = torch.zeros_like(leaves["weight"], requires_grad=False)
    result = call(problem, leaves, accumulate_into=total)
    assert not result.loss.requires_grad
    assert torch.equal(total, problem.run(needs=("weight",))[1]["weight"])


def test_with_statistics():
    problem = make_problem([5, 4]).cast(torch.float32)
    leaves = leaves_of(problem)
    total = torch.zeros_like(leaves["weight"], requires_grad=False)
    result, statistics = call(problem, leaves, accumulate_into=total, statistics=True)
    _, expected = call(problem, leaves_of(problem), statistics=True)
    assert all(map(torch.equal, statistics, expected)) and result.loss.requires_grad


def loss_into(problem):
    leaves = leaves_of(problem)
    return call(problem, leaves, accumulate_into=torch.zeros_like(leaves["weight"], requires_grad=False)).loss, leaves


def test_an_upstream_gradient_other_than_one_is_refused():
    loss, leaves = loss_into(make_problem([5, 4]).cast(torch.float32))
    with pytest.raises(
        RuntimeError, match=r"upstream gradient of one, but backward came with 0\.5; divide by `normaliser"
    ):
        (loss * 0.5).backward()
    assert leaves["hidden"].grad is None


def test_a_second_backward_and_a_second_derivative_are_refused():
    loss, _ = loss_into(make_problem([5, 4]).cast(torch.float32))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call flow_loss again before a second backward"):
        loss.backward()
    loss, leaves = loss_into(make_problem([5, 4]).cast(torch.float32))
    with pytest.raises(RuntimeError, match=r"use fastflow_kernels\.reference\.flow_loss, which has them all"):
        torch.autograd.grad(loss, leaves["hidden"], create_graph=True)


@pytest.mark.parametrize(
    ("total", "error", "says"),
    [
        (torch.zeros(4, 5), ValueError, r"accumulate_into must have shape \(11, 5\) .* got \(4, 5\)"),
        (torch.zeros(11, 5).bfloat16(), TypeError, r"accumulate_into must be one of torch.float32, got torch.bfloat16"),
        (torch.zeros(5, 11).t(), ValueError, r"accumulate_into must be contiguous, got strides \(1, 11\)"),
        (torch.zeros(11, 5, requires_grad=True), ValueError, "changed in place; pass weight.grad or a plain tensor"),
        (3.0, TypeError, r"accumulate_into must be a tensor of shape \(11, 5\), got float"),
    ],
)
def test_what_cannot_be_added_to_is_refused(total, error, says):
    problem = make_problem([5, 4]).cast(torch.float32)
    with pytest.raises(error, match=says):
        call(problem, leaves_of(problem), accumulate_into=total)


@pytest.mark.usefixtures("a_group")
def test_a_part_of_a_sum_is_refused():
    """Which FSDP puts in place of a parameter and its gradient."""
    total = distribute_tensor(torch.zeros(11, 5), init_device_mesh("cpu", (1,)), [Shard(0)])
    problem = make_problem([5, 4]).cast(torch.float32)
    with pytest.raises(TypeError, match="is a DTensor, of which this rank holds a part; pass a tensor for the whole"):
        call(problem, leaves_of(problem), accumulate_into=total)


def test_a_frozen_head_is_refused():
    problem = make_problem([5, 4]).cast(torch.float32)
    with pytest.raises(ValueError, match=r"weight does not require grad, .* call weight\.requires_grad_\(\)"):
        call(problem, leaves_of(problem, needs=("hidden",)), accumulate_into=torch.zeros(11, 5))


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_without_a_graph_break(device, dynamic):
    torch._dynamo.reset()
    problem = on_device(make_problem([3, 0, 9, 1], width=8, vocabulary=21, with_bias=True).cast(torch.float32), device)
    compiled = torch.compile(flow_loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got = into_zeros(problem, op=compiled, block_rows=4)
    assert_matches(on_cpu(got), on_cpu(into_zeros(problem, block_rows=4)), forward=0.0, gradient=0.0)


def test_a_graph_answers_another_upstream_gradient_with_nan():
    """It cannot look at a number."""
    torch._dynamo.reset()
    problem = make_problem([5, 4]).cast(torch.float32)
    leaves = leaves_of(problem)
    total = torch.zeros_like(leaves["weight"], requires_grad=False)
    compiled = torch.compile(flow_loss, fullgraph=True, backend="aot_eager")
    (call(problem, leaves, compiled, accumulate_into=total).loss * 0.5).backward()
    assert leaves["hidden"].grad.isnan().all() and leaves["log_z"].grad.isnan().all()
