"""flow_loss on the Hopper path against float64 of the same bfloat16 inputs, entry by entry of its gradients."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from gradient_terms import sizes_of_terms
from implementations import COMPILED, HOPPER
from kernel_problems import norm_error

pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if COMPILED else [])]
LENGTHS = [20, 1, 0, 45, 7]
ROUNDING = 2.0**-8  # of one number to bfloat16, relative, at most


@settings(
    deadline=None,
    max_examples=4 if COMPILED else 8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # interpreted kernels are too slow to shrink with
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 9, 30]), min_size=1, max_size=4).filter(any),
    width=st.sampled_from([8, 40]),
    vocabulary=st.sampled_from([128, 384, 640]),
    temperature=st.sampled_from([1.0, 0.7]),
    ratio=st.sampled_from(["sequence", "token_mean"]),
    block_rows=st.sampled_from([None, 16, 33]),
    seed=st.integers(0, 1000),
)
def test_any_sequences(lengths, width, vocabulary, temperature, ratio, block_rows, seed):
    options = {"width": width, "vocabulary": vocabulary, "temperature": temperature, "ratio": ratio}
    problem = HOPPER.problem(lengths, seed=seed, **options)
    exact, gradients = problem.oracle()
    got, found = HOPPER.run(problem, block_rows=block_rows)
    bound = HOPPER.within(4.0 / temperature)
    assert (got.token_logprob - exact.token_logprob).abs().max() <= bound
    scale = 2 * problem.tensors["length_scale"] / problem.options["normaliser"]
    coefficient = scale * exact.importance * exact.residual
    rows = coefficient.nan_to_num(0.0).repeat_interleave(torch.tensor(lengths))
    head = (problem.tensors[name] for name in ("hidden", "weight", "targets"))
    of_hidden, of_weight = sizes_of_terms(*head, rows, temperature)
    lost = 4 * max(lengths) * bound  # of a coefficient, whose residual is at least 0.5 in size
    assert ((found["hidden"].double() - gradients["hidden"]).abs() <= (ROUNDING + lost) * of_hidden + 1e-30).all()
    within = 3.03 * ROUNDING + lost
    assert ((found["weight"].double() - gradients["weight"]).abs() <= within * of_weight + 1e-30).all()
    assert norm_error(found["log_z"], gradients["log_z"]) <= lost
    assert norm_error(got.loss, exact.loss) <= lost


@pytest.mark.parametrize("options", [{"padding": 128}, {"logit_limit": 20.0}])
def test_options_of_the_head(options):
    problem = HOPPER.problem(LENGTHS, ratio="token_mean", **options)
    got = HOPPER.run(problem, block_rows=64)
    HOPPER.assert_matches(got, problem.oracle(), largest_logit=options.get("logit_limit", 4.0))
