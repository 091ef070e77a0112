"""No op ever makes a tensor of the size of all logits, nor holds two blocks; a frozen head costs no gradient of it."""

import weakref

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastflow_kernels import (
    accumulating_operator,
    flow_loss,
    flow_loss_blocks,
    flow_loss_operator,
    head_gradient,
    linear_logprob,
    linear_logprob_operator,
    reference,
    torch_projector,
)
from implementations import by_those_on_the_cpu
from kernel_problems import make_problem

ROWS, WIDTH, VOCABULARY, BLOCK_ROWS = 96, 8, 512, 16
BLOCK, HEAD, ALL_LOGITS = BLOCK_ROWS * VOCABULARY, WIDTH * VOCABULARY, ROWS * VOCABULARY


OPERATORS = {
    torch.ops.fastflow.flow_loss.default: flow_loss_operator.run,
    accumulating_operator.operator._opoverload: flow_loss_operator.run,
    torch.ops.fastflow.linear_logprob.default: linear_logprob_operator.run,
    torch.ops.fastflow.linear_logprob_backward.default: linear_logprob_operator.run_backward,
}


class Allocations(TorchDispatchMode):
    """Sizes, in elements, of the storages that operators return for the first time."""

    def __init__(self):
        super().__init__()
        self.elements: dict[int, int] = {}
        self.alive: list[torch.UntypedStorage] = []  # so that no address is used twice
        self.products = 0  # multiply-adds of matrix products

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastflow" and function in OPERATORS:  # what goes on inside is the question
            with self:
                return OPERATORS[function](*args, **(kwargs or {}))
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = [leaf for leaf in args if isinstance(leaf, torch.Tensor)][-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in before:
                storage = leaf.untyped_storage()
                self.elements[storage.data_ptr()] = storage.nbytes() // leaf.element_size()
                self.alive.append(storage)
        return result

    def count(self, elements: int) -> int:
        return sum(size == elements for size in self.elements.values())


def most_alive(run) -> int:
    """Elements of float32 by which the live memory of torch's CPU allocator grows at most while `run` runs."""
    run()  # what is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most // 4


@pytest.fixture
def problem():
    lengths = [12, 3, 0, 30, 16, 35]
    return make_problem(lengths, width=WIDTH, vocabulary=VOCABULARY).cast(torch.float32)


def test_flow_loss_holds_one_block_of_logits(problem):
    with Allocations() as seen:
        problem.run(block_rows=BLOCK_ROWS, needs=("hidden", "weight", "log_z"))
    assert max(seen.elements.values()) == BLOCK
    assert seen.products == 3 * ROWS * WIDTH * VOCABULARY  # 6 N D V flops


def gradients_of(lengths: list[int], *, accumulates: bool = False, **options):
    """A run that keeps nothing: its inputs are made beforehand, with a sum of the caller's where it `accumulates`."""
    problem = make_problem(lengths, width=WIDTH, vocabulary=VOCABULARY, **options).cast(torch.float32)
    tensors = {name: value for name, value in problem.tensors.items() if value is not None}
    extra = {"accumulate_into": torch.zeros_like(tensors["weight"])} if accumulates else {}
    head = [tensors[name].requires_grad_() for name in ("hidden", "weight")]

    def run() -> None:
        result = flow_loss(cu_seqlens=problem.cu_seqlens, **tensors, **problem.options, block_rows=BLOCK_ROWS, **extra)
        torch.autograd.grad(result.loss, head[:1] if accumulates else head)

    return run


@by_those_on_the_cpu
@pytest.mark.parametrize(("options", "slopes"), [({}, 0), ({"softcap": 20.0}, 1)])
def test_one_block_is_alive_at_a_time(implementation, options, slopes):
    """Beside it the gradients, a block of hidden states or two, and in PyTorch alone the slope of a soft-cap."""
    whole = BLOCK + HEAD + ROWS * WIDTH
    small = 8 * BLOCK_ROWS * WIDTH + 4096
    slopes *= implementation.name == "torch"
    assert whole + slopes * BLOCK <= most_alive(gradients_of([16] * 6, **options)) <= whole + slopes * BLOCK + small


@by_those_on_the_cpu
def test_a_sum_of_the_callers_leaves_a_block(implementation):
    """No tensor of the head's size is made."""
    run = gradients_of([16] * 6, accumulates=True)
    with Allocations() as seen:
        run()
    assert seen.count(HEAD) == 0
    assert BLOCK + ROWS * WIDTH <= most_alive(run) < BLOCK + ROWS * WIDTH + HEAD


def test_a_panel_goes_before_the_next_is_used(monkeypatch):
    """So that the head's gradient grows into the memory that they leave."""
    monkeypatch.setattr(torch_projector, "KEPT_PANEL_BYTES", BLOCK * 4 // 6)
    panels, counts = [], []
    spend, accumulate_ = flow_loss_blocks.spend_directions, head_gradient.accumulate_

    def remember(given, *arguments, **options):
        panels.extend(weakref.ref(panel.matrix) for panel in given)
        return spend(given, *arguments, **options)

    def count(*arguments, **options):
        counts.append(sum(panel() is not None for panel in panels))
        return accumulate_(*arguments, **options)

    monkeypatch.setattr(flow_loss_blocks, "spend_directions", remember)
    monkeypatch.setattr(head_gradient, "accumulate_", count)
    make_problem([BLOCK_ROWS], width=WIDTH, vocabulary=VOCABULARY).cast(torch.float32).run(needs=("weight",))
    assert counts == [5, 4, 3, 2, 1]


def test_the_count_sees_the_logits_of_the_reference(problem):
    """That is, the tests here can fail."""
    with Allocations() as seen:
        problem.run(op=reference.flow_loss, needs=("hidden", "weight", "log_z"))
    assert max(seen.elements.values()) == ALL_LOGITS
    assert seen.products == 3 * ROWS * WIDTH * VOCABULARY


@pytest.mark.parametrize(("needs", "products"), [(("weight",), 2), (("hidden",), 2), (("log_z",), 1), ((), 1)])
def test_only_the_products_that_are_needed(problem, needs, products):
    with Allocations() as seen:
        problem.run(block_rows=BLOCK_ROWS, needs=needs)
    assert seen.products == products * ROWS * WIDTH * VOCABULARY


def test_the_second_head_buffer_exists_only_for_long_sequences():
    counts = []
    for longest in (BLOCK_ROWS, BLOCK_ROWS + 3):
        problem = make_problem([5, longest], width=WIDTH, vocabulary=VOCABULARY).cast(torch.float32)
        tensors = {name: value for name, value in problem.tensors.items() if value is not None}
        tensors["weight"].requires_grad_()
        with Allocations() as seen:
            flow_loss(cu_seqlens=problem.cu_seqlens, **tensors, **problem.options, block_rows=BLOCK_ROWS)
        counts.append(seen.count(HEAD))
    assert counts == [1, 2]


def test_linear_logprob_holds_one_block_of_logits(problem):
    hidden, weight = (problem.tensors[name].requires_grad_() for name in ("hidden", "weight"))
    with Allocations() as seen:
        logprob = linear_logprob(hidden, weight, problem.tensors["targets"], block_rows=BLOCK_ROWS)
        forward = seen.products
        logprob.sum().backward()
    assert max(seen.elements.values()) == BLOCK
    assert forward == ROWS * WIDTH * VOCABULARY
    assert seen.products == 4 * ROWS * WIDTH * VOCABULARY  # 8 N D V flops


def test_linear_logprob_converts_a_head_once_for_both_passes():
    """Its copy stands from one to the other, beside one block."""
    problem = make_problem([ROWS], width=WIDTH, vocabulary=VOCABULARY).cast(torch.float32)
    hidden, targets = problem.tensors["hidden"].requires_grad_(), problem.tensors["targets"]
    weight = problem.tensors["weight"].half()

    def run() -> None:
        torch.autograd.grad(linear_logprob(hidden, weight, targets, block_rows=BLOCK_ROWS).sum(), hidden)

    with Allocations() as seen:
        run()
    assert seen.count(HEAD) == 1
    assert most_alive(run) < BLOCK + HEAD + 2 * ROWS * WIDTH + 8 * BLOCK_ROWS * WIDTH + 4096
