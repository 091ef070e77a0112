"""A block on the Hopper path against float64: the code that runs on sm_90, between products that are emulated here."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import HeadGradient

COMPILED = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if COMPILED else []
LOGPROB_BOUND, GRADIENT_BOUND = 3e-6, 3e-3
ROUNDING = 2.0**-8  # of one number to bfloat16, relative, at most

few_examples = settings(
    deadline=None,
    max_examples=6 if COMPILED else 20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make_block(
    row_count: int, width: int, vocabulary: int, *, limit: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight and targets in bfloat16, with the largest |logit| near `limit`."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(count, width, generator=generator) for count in (row_count, vocabulary))
    scale = (limit / (hidden @ weight.mT).abs().max()).sqrt()
    targets = torch.randint(0, vocabulary, (row_count,), generator=generator)
    return (hidden * scale).bfloat16(), (weight * scale).bfloat16(), targets


def through_hopper(
    hidden: Tensor, weight: Tensor, targets: Tensor, coefficient: Tensor, *, temperature: float = 1.0, tile: int = 192
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs with and without a gradient; the gradients of sum(coefficient * log-prob) for hidden and weight."""
    from fastflow_kernels.hopper.projector import HopperProjector

    head = Head(weight, None, temperature=temperature)
    projector = type("Projector", (HopperProjector,), {"tile": tile})(head, most_rows=len(hidden))
    forward = projector.logprobs(hidden, targets)
    directions = projector.directions(hidden, targets)
    d_hidden = torch.empty(hidden.shape, device=hidden.device)
    d_head = HeadGradient(head, weight.float(), None, block_count=2)
    projector.spend(directions, directions.factor * coefficient, hidden, d_hidden, d_head)
    return forward, directions.logprob, d_hidden, d_head.finish()[0]


def exactly(
    hidden: Tensor, weight: Tensor, targets: Tensor, coefficient: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and the two gradients in float64; 1 - p as the sum of the others, which keeps its digits."""
    hidden, weight, coefficient = hidden.double(), weight.double(), coefficient.double()
    logits = hidden @ weight.mT / temperature
    target = torch.nn.functional.one_hot(targets, weight.shape[0]).bool()
    others = logits.masked_fill(target, -torch.inf).logsumexp(1)
    logit = logits[target]
    slope = -logits.softmax(1).masked_fill(target, 0.0)
    slope = slope.masked_scatter(target, torch.sigmoid(others - logit))
    slope *= coefficient[:, None] / temperature
    return -torch.nn.functional.softplus(others - logit), slope @ weight, slope.mT @ hidden


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def float32_of(limit: float) -> float:
    """What float32 may lose of logits of this size."""
    return 2.0**-22 * limit


@pytest.mark.parametrize(("temperature", "vocabulary"), [(1.0, 4096), (0.7, 4096), (1.0, 1152)])
def test_errors_against_float64(device, temperature, vocabulary):
    """Vocabularies with a last tile of 64 and without."""
    block = [part.to(device) for part in make_block(100, 128, vocabulary, limit=8.0)]
    coefficient = torch.linspace(-1, 1, 100, device=device)
    forward, logprob, d_hidden, d_weight = through_hopper(*block, coefficient, temperature=temperature)
    exact, exact_d_hidden, exact_d_weight = exactly(*block, coefficient, temperature)
    assert (forward.double() - exact).abs().max() <= LOGPROB_BOUND
    assert (logprob.double() - exact).abs().max() <= LOGPROB_BOUND
    assert relative(d_hidden, exact_d_hidden) <= GRADIENT_BOUND
    assert relative(d_weight, exact_d_weight) <= GRADIENT_BOUND


@few_examples
@given(
    row_count=st.sampled_from([1, 2, 63, 64, 65, 129]),
    vocabulary=st.sampled_from([128, 256, 384, 512, 640, 1152]),
    tile=st.sampled_from([192] if COMPILED else [64, 128, 192, 256]),  # compiled, each is another kernel
    temperature=st.sampled_from([1.0, 0.3, 2.0]),
    limit=st.sampled_from([0.1, 4.0, 20.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_any_block_and_tile(device, row_count, vocabulary, tile, temperature, limit, seed):
    """Each row: E is rounded once, and v x once more on its way to the head."""
    if vocabulary % tile % 64:
        return
    block = [part.to(device) for part in make_block(row_count, 16, vocabulary, limit=limit, seed=seed)]
    coefficient = torch.linspace(0.5, 1, row_count, device=device)
    found = through_hopper(*block, coefficient, temperature=temperature, tile=tile)
    exact, exact_d_hidden, exact_d_weight = exactly(*block, coefficient, temperature)
    for logprob in found[:2]:
        assert (logprob.double() - exact).abs().max() <= LOGPROB_BOUND + float32_of(2 * limit / temperature)
        assert (logprob <= 0).all()
    lost = float32_of(2 * limit / temperature)
    sizes = [size_of_terms(*block, coefficient, temperature, of) for of in ("hidden", "weight")]
    assert (found[2].double() - exact_d_hidden).abs().le((ROUNDING + lost) * sizes[0] + 1e-30).all()
    assert (found[3].double() - exact_d_weight).abs().le((2.01 * ROUNDING + lost) * sizes[1] + 1e-30).all()


def size_of_terms(hidden, weight, targets, coefficient, temperature, of: str) -> Tensor:
    """The sum of the sizes of what each entry of the gradient is the sum of."""
    signs = torch.nn.functional.one_hot(targets, weight.shape[0]) * 2.0 - 1.0
    probability = (hidden.double() @ weight.double().mT / temperature).softmax(1)
    slope = (signs.clamp(min=0.0) - probability).abs() * coefficient.double()[:, None] / temperature
    return slope @ weight.double().abs() if of == "hidden" else slope.mT @ hidden.double().abs()


@pytest.mark.parametrize("depth", [30.0, 90.0, 200.0, 2000.0])
def test_improbable_targets(device, depth):
    """Whole tiles lie below the rest by more than bfloat16 spans: finite, and as exact as any other."""
    hidden, weight, targets = make_block(70, 16, 1152, limit=4.0)
    weight = torch.cat([weight, torch.zeros(1152, 8).bfloat16()], 1)
    weight[384:768, 16] = -depth  # two tiles
    hidden = torch.cat([hidden, torch.eye(8)[0].bfloat16().expand(70, 8)], 1)
    targets[::2] = 384 + targets[::2] % 384
    block = [part.to(device) for part in (hidden, weight, targets)]
    coefficient = torch.linspace(-1, 1, 70, device=device)
    forward, logprob, d_hidden, d_weight = through_hopper(*block, coefficient)
    exact, exact_d_hidden, exact_d_weight = exactly(*block, coefficient)
    assert exact.min() < -depth
    for found in (forward, logprob):
        assert (found.double() - exact).abs().max() <= LOGPROB_BOUND + float32_of(2 * depth)
    assert relative(d_hidden, exact_d_hidden) <= GRADIENT_BOUND
    assert relative(d_weight, exact_d_weight) <= GRADIENT_BOUND


@pytest.mark.parametrize("lead", [10.0, 15.0, 20.0])
def test_confident_targets_keep_their_digits(device, lead):
    """1 - p down to 1e-8: the gradient is that of the others, whose sum the target's term would swallow."""
    hidden, weight, targets = make_block(8, 16, 1152, limit=1.0)
    targets = torch.arange(8) * 130
    weight, hidden = torch.cat([weight, torch.zeros(1152, 8).bfloat16()], 1), torch.cat([hidden, torch.eye(8)], 1)
    weight[targets, torch.arange(16, 24)] = lead  # each row's own column, for its own target
    block = [part.to(device) for part in (hidden.bfloat16(), weight, targets)]
    coefficient = torch.ones(8, device=device)
    _, logprob, d_hidden, d_weight = through_hopper(*block, coefficient)
    exact, exact_d_hidden, exact_d_weight = exactly(*block, coefficient)
    assert ((logprob.double() - exact).abs() <= ROUNDING * exact.abs()).all()
    assert relative(d_hidden, exact_d_hidden) <= 2 * ROUNDING
    assert relative(d_weight, exact_d_weight) <= 3 * ROUNDING


def test_a_target_that_is_none_becomes_nan_alone(device):
    hidden, weight, targets = (part.to(device) for part in make_block(8, 16, 384, limit=4.0))
    targets[3], targets[5] = 384, -100
    forward, logprob, d_hidden, _ = through_hopper(hidden, weight, targets, torch.ones(8, device=device))
    expected = torch.tensor([False, False, False, True, False, True, False, False], device=device)
    for found in (forward, logprob, d_hidden.sum(1)):
        assert torch.equal(found.isnan(), expected)


def test_no_rows(device):
    hidden, weight, targets = (part.to(device) for part in make_block(4, 16, 384, limit=4.0))
    found = through_hopper(hidden[:0], weight, targets[:0], torch.ones(0, device=device))
    assert [tuple(part.shape) for part in found[:3]] == [(0,), (0,), (0, 16)]


def test_bits_are_those_of_the_epilogue():
    from fastflow_kernels.hopper import emulation

    assert math.log2(math.e) == emulation.LOG2_E
