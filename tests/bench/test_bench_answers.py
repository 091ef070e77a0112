"""What the harness holds answers against: the float64 answer, the composed loss, the bounds, the poison."""

from __future__ import annotations

import math

import pytest
import torch

from bench import ops
from bench.errors import errors_of, violations
from bench.exact import exact_answer
from bench.memory import poisoned
from bench.problem import default_mean_length, draw_lengths, make_problems
from bench.providers import select
from bench.sanitize import main as sanitize
from bench.shapes import OP_NAMES, Group, Shape
from fastflow_kernels import reference

SHAPE = Shape(23, 5, 17)
FLOAT32, BFLOAT16 = (Group("flow_loss", SHAPE, dtype, "cuda") for dtype in ("float32", "bfloat16"))


@pytest.fixture
def problem():
    return make_problems(SHAPE, torch.float64, "cpu", mean_length=6)[0]


def reference_step(problem) -> dict:
    result = reference.flow_loss(
        problem.hidden, problem.weight, problem.targets, problem.cu_seqlens, **problem.loss_inputs
    )
    return {"token_logprob": result.token_logprob, "logprob": result.logprob} | ops.loss_outputs(result.loss, problem)


REFERENCE_STEPS = {
    "flow_loss": reference_step,
    "linear_logprob": ops.token_step("linear_logprob", reference.linear_logprob),
    "logprob": ops.token_step("logprob", reference.linear_logprob),
}


@pytest.mark.parametrize("op", OP_NAMES)
@pytest.mark.parametrize("chunk_rows", [1, 7, None])
def test_the_float64_answer_is_the_reference(problem, op, chunk_rows):
    assert problem.sequence_count > 2
    exact = exact_answer(problem, op, chunk_rows)
    want = REFERENCE_STEPS[op](problem)
    assert set(want) - {"logprob"} == set(exact) - {"logprob"}
    for name, value in want.items():
        torch.testing.assert_close(exact[name], value.detach().double(), rtol=2e-7, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["fastflow", "eager", "checkpoint_chunks"])
@pytest.mark.parametrize("op", OP_NAMES)
def test_providers_answer_the_same_question(problem, op, name):
    (provider,) = select([name], quick=False)
    errors = errors_of(provider.make(op, problem)(problem), exact_answer(problem, op))
    assert max(errors.values()) < 1e-5  # eager's softmax is in float32


def test_log_probs_of_whole_sequences_make_the_same_loss(problem):
    def logprob(problem):
        tokens = reference.linear_logprob(problem.hidden, problem.weight, problem.targets)
        return torch.stack([part.sum() for part in tokens.split(problem.cu_seqlens.diff().tolist())])

    errors = errors_of(ops.sequence_step(logprob)(problem), exact_answer(problem, "flow_loss"))
    assert max(errors.values()) < 1e-6


def test_an_unwritten_output_shows(device):
    with poisoned(device.type):
        outputs = {"d_weight": torch.empty(64, 64, device=device)}
    assert outputs["d_weight"].isnan().all()
    errors = errors_of(outputs, {"d_weight": torch.ones(64, 64, device=device)})
    assert errors["d_weight_max"] == math.inf
    assert violations(errors, BFLOAT16, {"d_weight_norm": math.inf})
    assert not torch.are_deterministic_algorithms_enabled()


def test_bounds():
    right = {"token_logprob_abs": 1e-3, "d_hidden_max": 0.5, "d_hidden_norm": 1.4e-3}
    assert violations(right, BFLOAT16, {"d_hidden_norm": 1e-3}) == []
    assert violations(right, BFLOAT16, {"d_hidden_norm": 9e-4}) == ["d_hidden_norm is off by 1.4e-03 (bound 1.4e-03)"]
    assert violations({"token_logprob_abs": 3e-3}, BFLOAT16, {"token_logprob_abs": 3e-3})
    on_cpu = BFLOAT16._replace(device="cpu")
    assert violations({"token_logprob_abs": 3e-3}, on_cpu, {"token_logprob_abs": 2e-3}) == []
    assert violations({"token_logprob_abs": 4e-3}, on_cpu, {"token_logprob_abs": 2e-3})
    assert violations({"token_logprob_abs": 3e-5, "token_logprob_max": 3e-6}, FLOAT32, None) == []
    assert violations({"loss_max": 2e-5}, FLOAT32, None) and violations({"d_log_z_norm": 2e-4}, FLOAT32, None)


def test_lengths_fill_the_rows_with_the_mean_asked_for():
    lengths = draw_lengths(200_000, 900, torch.Generator().manual_seed(3))
    assert sum(lengths) == 200_000 and min(lengths) > 0
    assert abs(sum(lengths) / len(lengths) - 900) < 100
    assert max(lengths) > 2 * 900
    assert [default_mean_length(*case) for case in ((16384, "cuda"), (2048, "cuda"), (2048, "cpu"))] == [900, 512, 204]


def test_problems_share_the_head_and_nothing_that_a_cache_could_keep():
    first, second = make_problems(SHAPE, torch.float32, "cpu", count=2)
    assert first.weight is second.weight
    assert not torch.equal(first.hidden, second.hidden) and not torch.equal(first.targets, second.targets)


def test_peaked_logits_have_the_deviation_and_targets_of_their_own():
    problems = make_problems(Shape(400, 64, 300), torch.float64, "cpu", count=2, deviation=4.0)
    for problem in problems:
        exact = exact_answer(problem, "logprob")
        logits = problem.hidden.detach() @ problem.weight.detach().T
        assert logits.std().item() == pytest.approx(4.0, rel=0.1)
        assert exact["token_logprob"].mean().item() > -3.0  # those of any token are near -11
        torch.testing.assert_close(problem.behaviour_logprob.double(), exact["logprob"], rtol=1e-5, atol=1e-4)
    assert not torch.equal(problems[0].targets, problems[1].targets)


def test_the_cases_of_the_sanitizer_agree_with_the_reference(device):
    assert sanitize(["--device", device.type]) == 0
