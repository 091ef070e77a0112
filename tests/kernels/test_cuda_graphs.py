"""Both ops captured in a CUDA graph, and what a capture asks for."""

from __future__ import annotations

import pytest
import torch

from fastflow_kernels import flow_loss, flow_loss_operator, linear_logprob
from implementations import needs_cuda
from kernel_problems import GRADIENTS, assert_matches, make_problem, on_cpu, on_device, relative_error

LENGTHS = [40, 1, 0, 300, 7, 90]
HEAD = {"width": 64, "vocabulary": 1003, "with_bias": True}


def captured(step) -> torch.cuda.CUDAGraph:
    """One call of `step` as a graph, after two that compile its kernels and make the allocator's memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_rows", [None, 64])  # also with a sequence longer than a block
def test_forward_and_backward_replay_with_new_inputs(dtype, block_rows):
    first, second = (
        on_device(make_problem(LENGTHS, seed=seed, ratio="token_mean", **HEAD).cast(dtype), "cuda") for seed in (0, 1)
    )
    inputs = {name: value.clone() for name, value in first.tensors.items()}
    leaves = {name: inputs[name].requires_grad_() for name in GRADIENTS}
    offsets = first.cu_seqlens.cuda()
    outcome = {}

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        outcome["result"] = flow_loss(
            **inputs, cu_seqlens=first.cu_seqlens, device_cu_seqlens=offsets, block_rows=block_rows, **first.options
        )
        outcome["result"].loss.backward()

    graph = captured(step)
    gradients = {name: leaf.grad for name, leaf in leaves.items()}  # as the capture left them
    for problem in (second, first):
        with torch.no_grad():
            for name, value in inputs.items():
                value.copy_(problem.tensors[name])
        graph.replay()
        got = on_cpu((type(outcome["result"])(*(value.detach() for value in outcome["result"])), gradients))
        expected = on_cpu(problem.run(block_rows=block_rows))
        assert_matches(got, expected, forward=1e-5, gradient=1e-5 if dtype == torch.float32 else 0.01)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_logprob_replays_with_new_inputs(dtype):
    first, second = (on_device(make_problem([200], seed=seed, **HEAD).cast(dtype), "cuda") for seed in (0, 1))
    inputs = {name: first.tensors[name].clone() for name in ("hidden", "weight", "targets", "bias")}
    leaves = {name: inputs[name].requires_grad_() for name in ("hidden", "weight", "bias")}
    outcome = {}

    def step(inputs=inputs, leaves=leaves):
        for leaf in leaves.values():
            leaf.grad = None
        outcome["logprob"] = linear_logprob(**inputs, block_rows=64)
        outcome["logprob"].sum().backward()

    graph = captured(step)
    logprob, gradients = outcome["logprob"].detach(), {name: leaf.grad for name, leaf in leaves.items()}
    with torch.no_grad():
        for name, value in inputs.items():
            value.copy_(second.tensors[name])
    graph.replay()
    fresh = {name: second.tensors[name].requires_grad_(name != "targets") for name in inputs}
    step(fresh, {name: fresh[name] for name in leaves})
    assert relative_error(logprob.cpu(), outcome["logprob"].detach().cpu()) <= 1e-5
    for name, gradient in gradients.items():
        assert relative_error(gradient.cpu(), fresh[name].grad.cpu()) <= (1e-5 if dtype == torch.float32 else 0.01)


@needs_cuda
def test_a_plain_head_is_captured_whatever_serves_it():
    """One that hopper takes where it is installed: its kernels, too, must go to the capturing stream."""
    random = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "dtype": torch.bfloat16, "generator": random}
    hidden, weight = torch.randn(200, 64, **options), torch.randn(1024, 64, **options)
    targets = torch.randint(1024, (200,), device="cuda", generator=random)
    outcome = {}

    def step():
        leaf = hidden.detach().requires_grad_()
        outcome["logprob"] = linear_logprob(leaf, weight, targets)
        (outcome["gradient"],) = torch.autograd.grad(outcome["logprob"].sum(), leaf)

    graph = captured(step)
    replayed = dict(outcome)
    with torch.no_grad():
        hidden.copy_(torch.randn(200, 64, **options))
    graph.replay()
    step()
    for name, value in replayed.items():
        torch.testing.assert_close(value, outcome[name], rtol=0.01, atol=1e-4)


def test_offsets_on_both_sides_change_nothing(device):
    problem = on_device(make_problem([3, 0, 9, 1], with_bias=True).cast(torch.float32), device)
    want = on_cpu(problem.run(block_rows=4))
    for dtype in (torch.int32, torch.int64):
        got = problem.run(block_rows=4, device_cu_seqlens=problem.cu_seqlens.to(device, dtype))
        assert_matches(on_cpu(got), want, forward=0.0, gradient=0.0)


def test_a_capture_without_offsets_on_the_device_is_refused(monkeypatch):
    monkeypatch.setattr(flow_loss_operator, "is_being_captured", lambda device: True)
    problem = make_problem([3, 2]).cast(torch.float32)
    with pytest.raises(RuntimeError, match=r"not copy cu_seqlens to the device; pass .* as device_cu_seqlens"):
        problem.run()
    assert problem.run(device_cu_seqlens=problem.cu_seqlens)[0].loss.isfinite()


def test_offsets_of_another_shape_or_type_are_refused():
    problem = make_problem([3, 2]).cast(torch.float32)
    with pytest.raises(ValueError, match=r"device_cu_seqlens must have shape \(3,\) to match the others, got \(2,\)"):
        problem.run(device_cu_seqlens=problem.cu_seqlens[1:])
    with pytest.raises(TypeError, match=r"device_cu_seqlens must be one of torch\.int32, torch\.int64, got torch\.f"):
        problem.run(device_cu_seqlens=problem.cu_seqlens.float())
