"""flow_loss on the Hopper path against float64 of the same bfloat16 inputs: blocks, long sequences, what is needed."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from gradient_terms import sizes_of_terms
from kernel_problems import Problem, make_problem, on_cpu, on_device

COMPILED = torch.cuda.is_available()
pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if COMPILED else [])]
LENGTHS = [20, 1, 0, 45, 7]
LOGPROB_BOUND = 2e-4 if COMPILED else 3e-6  # nats, at logits near one
GRADIENT_BOUND = 0.01 if COMPILED else 3e-3  # of the norm
ROUNDED_BOUND = 0.01 if COMPILED else 3.9e-3  # the same, of a gradient that leaves in bfloat16
ROUNDING = 2.0**-8  # of one number to bfloat16, relative, at most
SUM_BOUND = 1e-3 if COMPILED else 1e-5  # of the loss, relative


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def assert_exact(problem: Problem, device: torch.device, upstream: float = 1.0, logit: float = 4.0, **options) -> None:
    """Hidden states enter in float32, with values of bfloat16: so their gradient leaves unrounded.

    logit: the largest one, after the temperature; float32 rounds a difference of two such.
    """
    exact, gradients = problem.oracle(upstream=upstream)
    leaves = replace(problem, tensors=problem.tensors | {"hidden": problem.tensors["hidden"].float()})
    got, found = on_cpu(on_device(leaves, device).run(upstream=upstream, **options))
    bound = LOGPROB_BOUND + 2.0**-22 * 2 * logit
    assert (got.token_logprob - exact.token_logprob.detach()).abs().max() <= bound
    assert relative(found["hidden"], gradients["hidden"]) <= GRADIENT_BOUND
    assert relative(found["weight"], gradients["weight"]) <= ROUNDED_BOUND
    assert relative(found["log_z"], gradients["log_z"]) <= SUM_BOUND
    assert relative(got.loss, exact.loss.detach()) <= SUM_BOUND


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
def test_any_sequences(device, lengths, width, vocabulary, temperature, ratio, block_rows, seed):
    problem = make_problem(
        lengths, width=width, vocabulary=vocabulary, temperature=temperature, ratio=ratio, seed=seed
    ).cast(torch.bfloat16)
    exact, gradients = problem.oracle()
    leaves = replace(problem, tensors=problem.tensors | {"hidden": problem.tensors["hidden"].float()})
    got, found = on_cpu(on_device(leaves, device).run(block_rows=block_rows))
    bound = LOGPROB_BOUND + 2.0**-22 * 2 * 4.0 / temperature
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
    assert relative(found["log_z"], gradients["log_z"]) <= lost
    assert relative(got.loss, exact.loss) <= lost


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
@pytest.mark.parametrize("block_rows", [None, 32, 17])
def test_sequences_longer_than_a_block(device, ratio, block_rows):
    problem = make_problem(LENGTHS, width=64, vocabulary=1152, ratio=ratio).cast(torch.bfloat16)
    assert_exact(problem, device, block_rows=block_rows)


@pytest.mark.parametrize("options", [{"padding": 128}, {"logit_limit": 20.0}])
def test_options_of_the_head(device, options):
    problem = make_problem(LENGTHS, width=64, vocabulary=640, ratio="token_mean", **options).cast(torch.bfloat16)
    assert_exact(problem, device, block_rows=64, logit=options.get("logit_limit", 4.0))


def test_upstream_gradient(device):
    problem = make_problem(LENGTHS, width=64, vocabulary=640, ratio="token_mean").cast(torch.bfloat16)
    assert_exact(problem, device, upstream=-0.37)


@pytest.mark.parametrize("needs", [("hidden",), ("weight",), ("log_z",), ()])
def test_only_what_is_needed(device, needs):
    problem = on_device(make_problem([20, 15], width=32, vocabulary=384).cast(torch.bfloat16), device)
    whole, part = on_cpu(problem.run(block_rows=25)), on_cpu(problem.run(needs=needs, block_rows=25))
    assert part[1].keys() == set(needs)
    for name in needs:
        torch.testing.assert_close(part[1][name], whole[1][name], rtol=1e-5, atol=1e-8)


def test_two_runs_are_bitwise_equal(device):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=640).cast(torch.bfloat16), device)
    first, second = (on_cpu(problem.run(block_rows=32)) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
