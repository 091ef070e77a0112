"""Both ops on the Hopper path against float64 of the same bfloat16 inputs: blocks, long sequences, upstream factors."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import explain, flow_loss, linear_logprob, reference
from kernel_problems import Problem, make_problem, on_cpu, on_device

LENGTHS = [40, 1, 0, 100, 7, 90]
LOGPROB_BOUND, GRADIENT_BOUND = 3e-6, 3e-3

pytestmark = [pytest.mark.usefixtures("hopper"), *([pytest.mark.gpu] if torch.cuda.is_available() else [])]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def in_float64(problem: Problem, **extra):
    """The reference on the bfloat16 values."""
    return problem.oracle(**extra)


def assert_exact(problem: Problem, device: torch.device, upstream: float = 1.0, **options) -> None:
    """Against the float64 reference; bfloat16 leaves round their gradients once more, so float32 ones stand in."""
    exact, gradients = in_float64(problem, upstream=upstream)
    leaves = Problem(
        problem.tensors | {name: problem.tensors[name].float() for name in ("hidden",)},
        problem.cu_seqlens,
        problem.options,
    )
    got, found = on_cpu(on_device(leaves, device).run(op=flow_loss, upstream=upstream, **options))
    assert (got.token_logprob - exact.token_logprob.detach()).abs().max() <= LOGPROB_BOUND
    assert relative(found["hidden"], gradients["hidden"]) <= GRADIENT_BOUND
    assert relative(found["weight"], gradients["weight"]) <= 1.3 * GRADIENT_BOUND  # rounded once more
    assert relative(found["log_z"], gradients["log_z"]) <= 1e-5
    assert relative(got.loss, exact.loss.detach()) <= 1e-5


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
@pytest.mark.parametrize("block_rows", [None, 64, 37])
def test_flow_loss(device, ratio, block_rows):
    """With blocks of 64 and 37 rows two sequences are longer than a block."""
    problem = make_problem(LENGTHS, width=64, vocabulary=1152, ratio=ratio).cast(torch.bfloat16)
    assert_exact(problem, device, block_rows=block_rows)


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"padding": 128}, {"logit_limit": 20.0}])
def test_options_of_the_head(device, options):
    problem = make_problem(LENGTHS, width=64, vocabulary=640, ratio="token_mean", **options).cast(torch.bfloat16)
    assert_exact(problem, device, block_rows=128)


def test_upstream_gradient(device):
    problem = make_problem(LENGTHS, width=64, vocabulary=640, ratio="token_mean").cast(torch.bfloat16)
    assert_exact(problem, device, upstream=-0.37)


@pytest.mark.parametrize("needs", [("hidden",), ("weight",), ("log_z",), ()])
def test_only_what_is_needed(device, needs):
    problem = make_problem([40, 30], width=32, vocabulary=384).cast(torch.bfloat16)
    whole = on_cpu(on_device(problem, device).run(block_rows=50))
    part = on_cpu(on_device(problem, device).run(needs=needs, block_rows=50))
    assert part[1].keys() == set(needs)
    for name in needs:
        torch.testing.assert_close(part[1][name], whole[1][name], rtol=1e-5, atol=1e-8)


def test_the_padding_of_the_head_gets_zeros(device):
    problem = make_problem([40, 30], width=32, vocabulary=384, padding=128).cast(torch.bfloat16)
    _, gradients = on_cpu(on_device(problem, device).run(block_rows=50))
    assert not gradients["weight"][384:].any() and gradients["weight"][:384].any()


@pytest.mark.parametrize("block_rows", [None, 100])
def test_linear_logprob(device, block_rows):
    problem = make_problem([250], width=64, vocabulary=1152, logit_limit=8.0).cast(torch.bfloat16)
    exact = {name: problem.tensors[name].double().requires_grad_() for name in ("hidden", "weight")}
    there = {name: problem.tensors[name].to(device) for name in ("hidden", "weight")}
    there["hidden"] = there["hidden"].float()
    there = {name: leaf.requires_grad_() for name, leaf in there.items()}
    upstream, targets = torch.linspace(-1, 1, 250), problem.tensors["targets"]
    logprob = linear_logprob(**there, targets=targets.to(device), temperature=0.8, block_rows=block_rows)
    logprob.backward(upstream.to(device))
    expected = reference.linear_logprob(**exact, targets=targets, temperature=0.8)
    expected.backward(upstream.double())
    assert (logprob.detach().cpu() - expected.detach()).abs().max() <= LOGPROB_BOUND
    assert relative(there["hidden"].grad.cpu(), exact["hidden"].grad) <= GRADIENT_BOUND
    assert relative(there["weight"].grad.cpu(), exact["weight"].grad) <= 1.3 * GRADIENT_BOUND


def test_two_runs_are_bitwise_equal(device):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=640).cast(torch.bfloat16), device)
    first, second = (on_cpu(problem.run(op=flow_loss, block_rows=64)) for _ in range(2))
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"vocabulary": 100}, "a vocabulary that is a multiple of 128, not 100"),
        ({"width": 12}, "a width that is a multiple of 8, not 12"),
        ({"with_bias": True}, "no bias"),
        ({"softcap": 20.0}, "no softcap"),
    ],
)
def test_what_it_cannot_serve_is_an_error_by_name(device, problem, words):
    problem = make_problem([3, 4], **({"width": 16, "vocabulary": 128} | problem)).cast(torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"FASTFLOW_KERNELS=hopper cannot serve this call: it takes .*{words}"):
        on_device(problem, device).run()


def test_other_types_are_an_error(device):
    problem = make_problem([3, 4], width=16, vocabulary=128).cast(torch.float32)
    with pytest.raises(RuntimeError, match=r"its products take bfloat16, not torch\.float32"):
        on_device(problem, device).run()


def test_it_is_named_where_it_serves(device):
    hidden, weight = (torch.zeros(count, 16, dtype=torch.bfloat16, device=device) for count in (2, 128))
    assert explain(hidden, weight) == "hopper: FASTFLOW_KERNELS asks for it"
