"""bfloat16 on a CPU that multiplies it: logits rounded once, as an eager head's, and nothing else lost."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings

from eager_head import eager_logits, exact_logits
from fastflow_kernels import flow_loss, head_gradient, linear_logprob, matmul, reference
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.head_gradient import HeadGradient
from fastflow_kernels.projector import Panel
from implementations import panels_of
from kernel_problems import Problem, assert_matches, make_problem, norm_error, problems

# Of the error of an eager bfloat16 head, which rounds logits, their gradient and the head's gradient. Ours rounds the
# scaled rows too, and with several blocks the product of each.
FACTOR, FACTOR_OF_BLOCKS = 1.5, 1.6
LENGTHS = [40, 1, 0, 100, 7, 90]

pytestmark = pytest.mark.skipif(
    not matmul.cpu_multiplies_bfloat16(), reason="needs a CPU with bfloat16 products (AVX-512 BF16 or AMX)"
)


def assert_no_worse_than_eager(problem: Problem, factor: float, **options) -> None:
    with eager_logits():
        eager = problem.run(op=reference.flow_loss)
    exact = problem.oracle()
    got = problem.run(op=flow_loss, **options)
    logprob = exact[0].token_logprob.detach()
    assert norm_error(got[0].token_logprob, logprob) <= FACTOR * norm_error(eager[0].token_logprob.detach(), logprob)
    for name, want in exact[1].items():
        assert got[1][name].dtype == eager[1][name].dtype
        assert norm_error(got[1][name], want) <= factor * norm_error(eager[1][name], want) + 1e-6, name


@pytest.mark.parametrize(("width", "vocabulary"), [(64, 1003), (200, 5000), (65, 257)])
@pytest.mark.parametrize(("block_rows", "factor"), [(None, FACTOR), (64, FACTOR_OF_BLOCKS)])
@pytest.mark.parametrize("head", [{}, {"softcap": 20.0, "temperature": 0.7}, {"logit_limit": 30.0}])
def test_flow_loss_is_no_worse_than_eager(width, vocabulary, block_rows, factor, head):
    problem = make_problem(LENGTHS, width=width, vocabulary=vocabulary, ratio="token_mean", **head)
    assert_no_worse_than_eager(problem.cast(torch.bfloat16), factor, block_rows=block_rows)


def test_a_bias_is_no_worse_than_eager():
    problem = make_problem(LENGTHS, width=64, vocabulary=1003, ratio="token_mean", with_bias=True)
    assert_no_worse_than_eager(problem.cast(torch.bfloat16), FACTOR)


def test_many_blocks_lose_nothing():
    """Each adds to the head's gradient in float32: 150 of them are no worse than one."""
    problem = make_problem([150], width=64, vocabulary=300).cast(torch.bfloat16)
    exact = problem.oracle()[1]["weight"]
    one, many = (problem.run(block_rows=rows)[1]["weight"] for rows in (150, 1))
    assert norm_error(many, exact) <= 1.2 * norm_error(one, exact)


def test_panels_change_nothing_much():
    problem = make_problem(LENGTHS, width=64, vocabulary=1003).cast(torch.bfloat16)
    with panels_of(50_000):
        assert_no_worse_than_eager(problem, FACTOR)


def test_a_single_block_sums_the_heads_gradient_in_its_own_type():
    """More need float32 to sum in."""
    weight = torch.zeros(40, 8, dtype=torch.bfloat16)
    head = Head.of(factors_of(weight, torch.bfloat16), None)
    panel, rows = Panel(0, torch.ones(3, 40, dtype=torch.bfloat16)), torch.ones(3, 8, dtype=torch.bfloat16)
    for block_count, expected in ((1, torch.bfloat16), (2, torch.float32)):
        with patch.object(head_gradient, "accumulate_") as accumulate_:
            HeadGradient(head, weight, None, block_count=block_count).add_panel(panel, torch.ones(3), rows)
        assert accumulate_.call_args.args[0].dtype == expected


def test_a_target_beyond_the_rounded_logits():
    """Its logit is 32895, which the product rounds to 32768: exp of the difference is no float32."""
    weight = torch.tensor([[32768.0, 127.0], [32768.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    got = linear_logprob(torch.ones(1, 2, dtype=torch.bfloat16), weight, torch.tensor([0]))
    assert -1e-30 <= got.item() <= 0


def test_the_target_is_not_rounded():
    """A certain token: its logit is 40.1, of which bfloat16 products make 40."""
    hidden = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[40.0, 0.1], [40.0, 0.0]], dtype=torch.bfloat16)
    got = linear_logprob(hidden, weight, torch.tensor([0]))
    exact = reference.linear_logprob(hidden.double(), weight.double(), torch.tensor([0]))
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_finite_and_close_whatever_the_shape(problem):
    """A rounded logit is off by 2^-9 of itself; log-probs and gradients by some of that."""
    problem = problem.cast(torch.bfloat16)
    rounded = problem.run()
    with exact_logits():
        exact = problem.run()
    assert (rounded[0].token_logprob <= 0).all()
    torch.testing.assert_close(rounded[0].token_logprob, exact[0].token_logprob, rtol=0, atol=0.1)
    assert all(gradient.isfinite().all() for gradient in rounded[1].values())


def test_without_the_instructions_the_head_is_raised_to_float32():
    problem = make_problem(LENGTHS, width=64, vocabulary=1003).cast(torch.bfloat16)
    with exact_logits():
        got = problem.run()
    assert_matches((got[0], {}), (problem.cast(torch.float32).run()[0], {}), forward=1e-6, gradient=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_head_leaves_in_its_type(dtype):
    problem = make_problem([9], width=8, vocabulary=40).cast(torch.bfloat16)
    problem.tensors["weight"] = problem.tensors["weight"].to(dtype)
    _, gradients = problem.run()
    assert gradients["weight"].dtype == dtype and gradients["hidden"].dtype == torch.bfloat16
