"""linear_logprob on the Hopper path against float64 of the same bfloat16 inputs, entry by entry of its gradients."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings

from gradient_terms import sizes_of_terms
from implementations import COMPILED, HOPPER

pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if COMPILED else [])]
ROUNDING = 2.0**-8  # of one number to bfloat16, relative, at most
DIGITS_OF_ONE = 2.0**-21  # of 1 - p, from a float32 sum that p is taken out of


@settings(
    deadline=None,
    max_examples=6 if COMPILED else 12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # interpreted kernels are too slow to shrink with
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(  # a target whose 1 - p is 9e-6
    row_count=40, width=64, vocabulary=128, seed=236, logit_limit=200.0, temperature=1.0, block_rows=16
)  # fmt: skip
@given(
    row_count=st.sampled_from([1, 2, 17, 40]),
    width=st.sampled_from([8, 24, 64]),
    vocabulary=st.sampled_from([128, 384, 640]),
    seed=st.integers(0, 1000),
    logit_limit=st.sampled_from([0.5, 4.0, 30.0, 200.0]),
    temperature=st.sampled_from([1.0, 0.3, 2.0]),
    block_rows=st.sampled_from([None, 16, 23]),
)
def test_any_block(row_count, width, vocabulary, seed, logit_limit, temperature, block_rows):
    """Up to logits at which most targets' tiles must be taken again.

    Exponentials are rounded once, in such tiles' rows twice; on the way to the head, v x and the sum as well.
    """
    tensors = HOPPER.head(row_count, seed, width=width, vocabulary=vocabulary, logit_limit=logit_limit)
    upstream = torch.linspace(0.5, 1, row_count)
    got, want = HOPPER.run_both(tensors, [upstream], temperature=temperature, block_rows=block_rows)
    bound = HOPPER.within(logit_limit / temperature)
    assert (got.outputs[0].double() - want.outputs[0]).abs().max() <= bound
    assert (got.outputs[0] <= 0).all()
    problem = (tensors[name] for name in ("hidden", "weight", "targets"))
    of_hidden, of_weight = sizes_of_terms(*problem, upstream, temperature, DIGITS_OF_ONE / ROUNDING)
    roundings = 1 if logit_limit / temperature < 20 else 2  # 41 nats between two logits make a tile such a one
    errors = {name: (got.gradients[name].double() - want.gradients[name]).abs() for name in ("hidden", "weight")}
    assert (errors["hidden"] <= (roundings * ROUNDING + bound) * of_hidden + 1e-30).all()
    assert (errors["weight"] <= ((2 + roundings) * ROUNDING * 1.01 + bound) * of_weight + 1e-30).all()


@pytest.mark.parametrize("vocabulary", [1152, 4096])
def test_many_tiles(vocabulary):
    """Full ones alone, and with a last one of 64."""
    tensors = HOPPER.head(50, width=128, vocabulary=vocabulary, logit_limit=8.0)
    HOPPER.assert_head_matches(*HOPPER.run_both(tensors, temperature=0.8), largest_logit=10.0)


@pytest.mark.parametrize("lead", [8.0, 16.0, 40.0])
def test_nearly_certain_targets(lead):
    """1 - p keeps the digits of one: what is lost is small beside the gradient of an ordinary row."""
    tensors = HOPPER.head_with_lead(lead, slice(7, 8))
    tensors["targets"][::2] = 7
    tensors["hidden"][1::2, 16:] = 0  # ordinary rows
    got, want = HOPPER.run_both(tensors, [torch.ones(20)])
    HOPPER.assert_head_matches(got, want, largest_logit=lead)
    largest_error = HOPPER.logprob * tensors["weight"].double().norm(dim=1).max()
    found, exact = (outcome.gradients["hidden"][::2].double() for outcome in (got, want))
    assert ((found - exact).norm(dim=1) <= largest_error + ROUNDING * exact.norm(dim=1)).all()


def test_a_nearly_certain_target_with_a_large_logit():
    """Its term leaves the sum as it went in, though its exponent is a difference of numbers near 700."""
    tensors = HOPPER.head_with_lead(500.0, slice(7, 8))
    tensors["hidden"][:, 16] *= torch.linspace(0.9, 1.1, 20).bfloat16()
    tensors["targets"][:] = 7
    tensors = HOPPER.inputs(tensors)
    (logprob,) = HOPPER.run_head(tensors).outputs
    assert (logprob <= 0).all() and (logprob >= -HOPPER.logprob).all()
