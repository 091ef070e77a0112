"""A float16 head as CUDA takes it: logits of float16 factors, gradients of bfloat16 ones. Interpreted on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import linear_logprob, reference, validate
from head_calls import assert_head_near, run_head, upstream_of
from implementations import needs_cuda
from kernel_problems import assert_near, head_tensors, make_problem, norm_error, on_cpu, on_device, relative_error

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

LENGTHS = [20, 0, 70, 3]
SHAPE = {"width": 64, "vocabulary": 203}


@pytest.fixture
def on_tensor_cores(device, monkeypatch):
    """The type and the implementation that CUDA chooses; the CPU would take float32."""
    if device.type == "cpu":
        monkeypatch.setattr(validate, "factor_dtype", lambda hidden, weight: torch.float16)
    monkeypatch.setenv("FASTFLOW_KERNELS", "fused")


@pytest.mark.usefixtures("on_tensor_cores")
@pytest.mark.parametrize("block_rows", [None, 32])
def test_flow_loss(device, block_rows):
    problem = make_problem(LENGTHS, ratio="token_mean", with_bias=True, softcap=20.0, temperature=0.7, **SHAPE)
    problem = problem.cast(torch.float16)
    got = on_cpu(on_device(problem, device).run(block_rows=block_rows))
    assert got[1]["weight"].dtype == torch.float16
    assert_near(got, problem.oracle(), logprob=1e-4, gradient=0.01)


@pytest.mark.usefixtures("on_tensor_cores")
@pytest.mark.parametrize("normaliser", [1e12, 1e-12])
def test_coefficients_beyond_its_range_need_no_loss_scale(device, normaliser):
    """Of a float32 model under autocast, whose gradients leave in float32."""
    problem = make_problem(LENGTHS, ratio="token_mean", normaliser=normaliser, **SHAPE).cast(torch.float32)
    with torch.autocast("cuda", torch.float16, enabled=device.type == "cuda"):
        result, gradients = on_cpu(on_device(problem, device).run(block_rows=32))
    expected, want = problem.oracle()
    assert relative_error(result.loss, expected.loss.detach()) <= 1e-5
    for name, gradient in want.items():
        assert relative_error(gradients[name], gradient) <= 0.01, name


@pytest.mark.usefixtures("on_tensor_cores")
def test_improbable_targets(device):
    """Exponentials against such a target's logit exceed what float16 holds, and the others' fall below it."""
    tensors = head_tensors(60, **SHAPE, seed=0, logit_limit=60.0)
    expected = run_head(reference.linear_logprob, tensors)
    assert expected.outputs[0].min() < -40
    assert_head_near(run_head(linear_logprob, tensors, None, torch.float16, device=device, block_rows=32), expected)


@pytest.mark.usefixtures("on_tensor_cores")
@pytest.mark.parametrize("which", [(False, True, False), (False, False, True), (True, True, True)])
def test_statistics(device, which):
    tensors = head_tensors(20, **SHAPE, seed=0, logit_limit=4.0)
    upstream = upstream_of(20, which=which)
    want = run_head(reference.linear_logprob, tensors, upstream, statistics=True)
    got = run_head(linear_logprob, tensors, upstream, torch.float16, device=device, block_rows=16, statistics=True)
    for found, expected in zip(got.outputs, want.outputs, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert got.gradients.keys() == want.gradients.keys()
    for name, gradient in want.gradients.items():
        assert norm_error(got.gradients[name], gradient) <= 0.01, name


@needs_cuda
@pytest.mark.parametrize("name", ["torch", "rows", "fused"])
def test_every_implementation_on_a_gpu(name, monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", name)
    problem = make_problem(LENGTHS, ratio="token_mean", with_bias=True, **SHAPE).cast(torch.float16)
    result, gradients = on_cpu(on_device(problem, "cuda").run(block_rows=32))
    expected = problem.oracle()
    assert relative_error(result.token_logprob, expected[0].token_logprob.detach()) <= 1e-4
    for key, gradient in expected[1].items():
        assert relative_error(gradients[key], gradient) <= 0.01, key
