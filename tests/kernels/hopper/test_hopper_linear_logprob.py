"""linear_logprob on the Hopper path against float64 of the same bfloat16 inputs."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from fastflow_kernels import linear_logprob, logprob_blocks, reference
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.implementation import choose
from gradient_terms import sizes_of_terms
from kernel_problems import head_tensors

COMPILED = torch.cuda.is_available()
pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if COMPILED else [])]
LOGPROB_BOUND = 2e-4 if COMPILED else 3e-6  # nats, at logits near one
GRADIENT_BOUND = 0.01 if COMPILED else 3e-3  # of the norm
ROUNDED_BOUND = 0.01 if COMPILED else 3.9e-3  # the same, of a gradient that leaves in bfloat16

ROUNDING = 2.0**-8  # of one number to bfloat16, relative, at most
DIGITS_OF_ONE = 2.0**-21  # of 1 - p, from a float32 sum that p is taken out of

few_examples = settings(
    deadline=None,
    max_examples=6 if COMPILED else 12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # interpreted kernels are too slow to shrink with
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Answer(NamedTuple):
    """Log-probs (N,), and the gradients of their sum times `upstream`."""

    logprob: Tensor
    hidden: Tensor
    weight: Tensor


def answers(
    hidden: Tensor, weight: Tensor, targets: Tensor, device: torch.device, upstream: Tensor | None = None, **options
) -> tuple[Answer, Answer]:
    """The op's and float64's, on the CPU; hidden and weight hold values of bfloat16.

    The op takes hidden in float32, so that their gradient leaves unrounded.
    """
    upstream = torch.linspace(-1, 1, len(targets)) if upstream is None else upstream

    def run(op, hidden: Tensor, weight: Tensor, **extra) -> Answer:
        hidden, weight = (leaf.detach().clone().requires_grad_() for leaf in (hidden, weight))
        logprob = op(hidden, weight, targets.to(hidden.device), **extra)
        logprob.backward(upstream.to(logprob))
        return Answer(*(value.detach().cpu() for value in (logprob, hidden.grad, weight.grad)))

    blocks = {name: options.pop(name) for name in ("block_rows",) if name in options}
    got = run(linear_logprob, hidden.to(device, torch.float32), weight.to(device, torch.bfloat16), **options, **blocks)
    return got, run(reference.linear_logprob, hidden.double(), weight.double(), **options)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-30))


def assert_close(got: Answer, want: Answer, largest_logit: float) -> None:
    """largest_logit: after the temperature; float32 rounds a difference of two such."""
    bound = LOGPROB_BOUND + 2.0**-22 * 2 * largest_logit
    assert (got.logprob.double() - want.logprob).abs().max() <= bound
    assert (got.logprob <= 0).all()
    assert relative(got.hidden, want.hidden) <= GRADIENT_BOUND + bound
    assert relative(got.weight, want.weight) <= ROUNDED_BOUND + bound


def in_bfloat16(row_count: int, width: int, vocabulary: int, seed: int, logit_limit: float) -> tuple[Tensor, ...]:
    tensors = head_tensors(row_count, width, vocabulary, seed, logit_limit)
    return tensors["hidden"].bfloat16(), tensors["weight"].bfloat16(), tensors["targets"]


@few_examples
@given(
    row_count=st.sampled_from([1, 2, 17, 40]),
    width=st.sampled_from([8, 24, 64]),
    vocabulary=st.sampled_from([128, 384, 640]),
    seed=st.integers(0, 1000),
    logit_limit=st.sampled_from([0.5, 4.0, 30.0, 200.0]),
    temperature=st.sampled_from([1.0, 0.3, 2.0]),
    block_rows=st.sampled_from([None, 16, 23]),
)
def test_any_block(device, row_count, width, vocabulary, seed, logit_limit, temperature, block_rows):
    """Up to logits at which most targets' tiles must be taken again.

    Exponentials are rounded once, in such tiles' rows twice; on the way to the head, v x and the sum as well.
    """
    problem = in_bfloat16(row_count, width, vocabulary, seed, logit_limit)
    upstream = torch.linspace(0.5, 1, row_count)
    got, want = answers(*problem, device, upstream, temperature=temperature, block_rows=block_rows)
    bound = LOGPROB_BOUND + 2.0**-22 * 2 * logit_limit / temperature
    assert (got.logprob.double() - want.logprob).abs().max() <= bound
    assert (got.logprob <= 0).all()
    of_hidden, of_weight = sizes_of_terms(*problem, upstream, temperature, DIGITS_OF_ONE / ROUNDING)
    roundings = 1 if logit_limit / temperature < 20 else 2  # 41 nats between two logits make a tile such a one
    assert ((got.hidden.double() - want.hidden).abs() <= (roundings * ROUNDING + bound) * of_hidden + 1e-30).all()
    within = (2 + roundings) * ROUNDING * 1.01 + bound
    assert ((got.weight.double() - want.weight).abs() <= within * of_weight + 1e-30).all()


@pytest.mark.parametrize("vocabulary", [1152, 4096])
def test_many_tiles(device, vocabulary):
    """Full ones alone, and with a last one of 64."""
    problem = in_bfloat16(50, 128, vocabulary, seed=0, logit_limit=8.0)
    assert_close(*answers(*problem, device, temperature=0.8), largest_logit=10.0)


def test_padding_of_the_head(device):
    hidden, weight, targets = in_bfloat16(20, 16, 512, seed=0, logit_limit=4.0)
    got, want = answers(hidden, weight, targets % 384, device, vocabulary=384)
    assert_close(got, want, largest_logit=4.0)
    assert not got.weight[384:].any() and got.weight[:384].any()


def with_lead(row_count: int, vocabulary: int, lead: float, columns: slice) -> tuple[Tensor, ...]:
    """Ordinary rows, and a width more by which these columns' logits are higher."""
    hidden, weight, targets = in_bfloat16(row_count, 16, vocabulary, seed=0, logit_limit=4.0)
    extra = torch.zeros(vocabulary, 8).bfloat16()
    extra[columns, 0] = lead
    always = torch.eye(8)[0].bfloat16().expand(row_count, 8)
    return torch.cat([hidden, always], 1), torch.cat([weight, extra], 1), targets


@pytest.mark.parametrize("depth", [30.0, 90.0, 200.0, 2000.0])
@pytest.mark.parametrize("columns", [slice(192, 384), slice(200, 201)])
def test_improbable_targets(device, depth, columns):
    """A tile or a column lies below the rest by more than an exponential spans: finite, and as exact as any other."""
    hidden, weight, targets = with_lead(20, 640, -depth, columns)
    targets[::2] = columns.start + targets[::2] % (columns.stop - columns.start)
    got, want = answers(hidden, weight, targets, device)
    assert (want.logprob[::2] < 1 - depth).all() and all(part.isfinite().all() for part in got)
    assert_close(got, want, largest_logit=depth + 4)


def test_one_logit_far_above_all_tiles(device):
    """One tile's exponentials overflow, and the others' vanish against it."""
    hidden, weight, targets = with_lead(20, 640, 500.0, slice(300, 301))
    targets[3] = 300
    got, want = answers(hidden, weight, targets, device)
    assert all(part.isfinite().all() for part in got)
    assert_close(got, want, largest_logit=504)


@pytest.mark.parametrize("lead", [8.0, 16.0, 40.0])
def test_nearly_certain_targets(device, lead):
    """1 - p keeps the digits of one: what is lost is small beside the gradient of an ordinary row."""
    hidden, weight, targets = with_lead(20, 640, lead, slice(7, 8))
    targets[::2] = 7
    hidden[1::2, 16:] = 0  # ordinary rows
    upstream = torch.ones(20)
    got, want = answers(hidden, weight, targets, device, upstream)
    assert_close(got, want, largest_logit=lead)
    largest_error = LOGPROB_BOUND * weight.double().norm(dim=1).max()
    errors = (got.hidden.double() - want.hidden)[::2].norm(dim=1)
    assert (errors <= largest_error + ROUNDING * want.hidden[::2].norm(dim=1)).all()


def test_a_nearly_certain_target_with_a_large_logit(device):
    """Its term leaves the sum as it went in, though its exponent is a difference of numbers near 700."""
    hidden, weight, targets = with_lead(20, 640, 500.0, slice(7, 8))
    hidden[:, 16] *= torch.linspace(0.9, 1.1, 20).bfloat16()
    targets[:] = 7
    got, _ = answers(hidden, weight, targets, device)
    assert (got.logprob <= 0).all() and (got.logprob >= -LOGPROB_BOUND).all()


def test_nan_stays_in_its_row(device):
    hidden, weight, targets = in_bfloat16(20, 16, 640, seed=0, logit_limit=4.0)
    hidden[5, 2] = torch.nan
    got, _ = answers(hidden, weight, targets, device)
    expected = torch.arange(20) == 5
    assert torch.equal(got.logprob.isnan(), expected)
    assert torch.equal(got.hidden.isnan().any(1), expected)


def test_a_target_that_is_none_becomes_nan_alone(device):
    """Past the ops' own check, which a CUDA device is not asked for."""
    hidden, weight, targets = (part.to(device) for part in in_bfloat16(20, 16, 384, seed=0, logit_limit=4.0))
    targets[3], targets[5], targets[19] = 384, -100, 2**33
    head = Head.of(factors_of(weight, torch.bfloat16), None)
    choice = choose(device, torch.bfloat16, head)
    logprob = logprob_blocks.logprobs(hidden, targets, head, choice)
    d_hidden, d_weight, _ = logprob_blocks.gradients(
        torch.ones(20, device=device),
        hidden,
        targets,
        head,
        choice,
        None,
        None,
        need_hidden=True,
        weight=None,
        bias=None,
    )
    assert d_weight is None
    for found in (logprob, d_hidden.sum(1)):
        assert found.isnan().nonzero().flatten().tolist() == [3, 5, 19]
    fine = torch.ones(20, dtype=torch.bool)
    fine[[3, 5, 19]] = False
    _, want = answers(hidden[fine].cpu(), weight.cpu(), targets[fine].cpu(), device, torch.ones(17))
    assert relative(d_hidden[fine].cpu(), want.hidden) <= GRADIENT_BOUND


def test_no_rows(device):
    hidden, weight, targets = (part.to(device) for part in in_bfloat16(4, 16, 384, seed=0, logit_limit=4.0))
    weight.requires_grad_()
    logprob = linear_logprob(hidden[:0], weight, targets[:0])
    logprob.sum().backward()
    assert logprob.shape == (0,) and not weight.grad.any()
