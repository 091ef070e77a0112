"""The ops as operators of torch: opcheck, torch.compile, autocast, and what a graph may not do."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from fastflow_kernels import (
    accumulating_operator,
    flow_loss,
    flow_loss_operator,
    linear_logprob,
    linear_logprob_operator,
)
from fastflow_kernels.head import factors_of
from kernel_problems import GRADIENTS, assert_matches, make_problem, on_cpu, on_device, relative_error

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def flow_loss_arguments(
    device,
    needs=(True, True, True, True),
    dtype=torch.float32,
    with_bias=True,
    on_both_sides=False,
    statistics=False,
    **options,
):
    problem = on_device(make_problem([3, 0, 9, 1], width=8, vocabulary=21, with_bias=with_bias).cast(dtype), device)
    tensors = {
        name: None if value is None else value.requires_grad_(name in GRADIENTS and needs[GRADIENTS.index(name)])
        for name, value in problem.tensors.items()
    }
    settings = {"softcap": None, "block_rows": 4, "block_bytes": None} | options
    numbers = [*(problem.options[name] for name in ("clip_low", "clip_high", "normaliser")), 1.0]
    return (
        *(tensors[name] for name in ("hidden", "weight", "bias", "log_z", "targets")),
        factors_of(tensors["weight"], tensors["weight"].dtype, settings.pop("vocabulary", None)),
        problem.cu_seqlens,
        problem.cu_seqlens.to(device) if on_both_sides else None,
        *(tensors[name] for name in ("log_target", "length_scale", "behaviour_logprob")),
        torch.tensor(numbers, dtype=torch.float64),
        problem.options["ratio"],
        *settings.values(),
        0,
        None,
        None,
        statistics,
        list(needs),
    )


def linear_logprob_arguments(device, with_bias=True, statistics=False, **options):
    problem = on_device(make_problem([12], width=8, vocabulary=21, with_bias=with_bias).cast(torch.float32), device)
    head = [problem.tensors[name] for name in ("hidden", "weight", "bias", "targets")]
    for tensor in head[:3]:
        if tensor is not None:
            tensor.requires_grad_()
    settings = {"softcap": None, "block_rows": 5, "block_bytes": None} | options
    return (
        *head,
        factors_of(head[1], torch.float32),
        torch.tensor([0.7]).double(),
        *settings.values(),
        0,
        None,
        None,
        statistics,
    )


@pytest.mark.parametrize("check", OPCHECKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"needs": (True, False, False, True)},
        {"with_bias": False, "softcap": 30.0},
        {"vocabulary": 19},
        {"on_both_sides": True},
        {"statistics": True},
    ],
    ids=["all", "frozen head", "softcap", "padded", "offsets on both sides", "statistics"],
)
def test_opcheck_of_flow_loss(device, options, check):
    if options.get("vocabulary"):
        options = {**options, "dtype": torch.float64}
    arguments = flow_loss_arguments(device, **options)
    if options.get("vocabulary"):
        arguments[4].clamp_(max=options["vocabulary"] - 1)
    torch.library.opcheck(flow_loss_operator.operator, arguments, test_utils=check)


@pytest.mark.parametrize("check", OPCHECKS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_opcheck_of_linear_logprob(device, with_bias, statistics, check):
    torch.library.opcheck(
        linear_logprob_operator.operator, linear_logprob_arguments(device, with_bias, statistics), test_utils=check
    )


@pytest.mark.parametrize("check", OPCHECKS)
@pytest.mark.parametrize("options", [{"needs": (True, False, True, True)}, {"needs": (True, False, False, True)}])
def test_opcheck_of_a_sum_of_the_callers(device, options, check):
    """Of both operators: the one that adds, on tensors without gradients, and the one that attaches the others'."""
    arguments = [
        value.detach() if isinstance(value, torch.Tensor) else value for value in flow_loss_arguments(device, **options)
    ]
    total = torch.zeros_like(arguments[1])
    torch.library.opcheck(accumulating_operator.operator, (*arguments, total), test_utils=check)
    loss, *_, d_hidden, _, d_bias, d_log_z = flow_loss_operator.operator(*arguments)
    hidden, bias, log_z = (arguments[place].requires_grad_() for place in (0, 2, 3))
    if not options["needs"][2]:
        bias = None
    torch.library.opcheck(
        accumulating_operator.attach_operator, (loss, hidden, bias, log_z, d_hidden, d_bias, d_log_z), test_utils=check
    )


@pytest.fixture
def fresh_compiler():
    """Nothing from earlier tests, nor from the caches of earlier versions of the operators on this machine."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_flow_loss_compiles_without_a_graph_break(device, dynamic):
    problem = on_device(make_problem([3, 0, 9, 1], width=8, vocabulary=21, with_bias=True).cast(torch.float32), device)
    compiled = torch.compile(flow_loss, fullgraph=True, dynamic=dynamic)
    got = on_cpu(problem.run(op=compiled, upstream=0.5, block_rows=4))
    assert_matches(got, on_cpu(problem.run(upstream=0.5, block_rows=4)), forward=0.0, gradient=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])  # the second closes floats that the first leaves open
@pytest.mark.parametrize("part", [0, 0.5])
def test_batches_of_all_sizes_share_few_graphs(device, part, backend):
    """Lengths, their number and the normaliser, whole or not, change with every batch of a run."""
    frames = CompileCounterWithBackend(backend)
    compiled = torch.compile(flow_loss, fullgraph=True, backend=frames)
    for count in range(2, 14):
        lengths = [count + place % 3 for place in range(count)]
        problem = make_problem(lengths, width=8, vocabulary=21, normaliser=count + part).cast(torch.float32)
        problem = on_device(problem, device)
        assert_matches(on_cpu(problem.run(op=compiled)), on_cpu(problem.run()), forward=0.0, gradient=0.0)
    assert frames.frame_count <= 4


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["clip_low", "clip_high", "temperature", "normaliser"])
def test_a_number_that_changes_each_step_leaves_the_graph(device, name, backend):
    frames = CompileCounterWithBackend(backend)
    compiled = torch.compile(flow_loss, fullgraph=True, backend=frames)
    problem = on_device(make_problem([3, 2, 5], width=8, vocabulary=21).cast(torch.float32), device)
    for step in range(6):
        problem.options[name] = 0.9 - 0.1 * step
        assert_matches(on_cpu(problem.run(op=compiled)), on_cpu(problem.run()), forward=0.0, gradient=0.0)
    assert frames.frame_count <= 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_log_probs_of_a_temperature_that_changes_share_a_graph(device, backend):
    frames = CompileCounterWithBackend(backend)
    compiled = torch.compile(linear_logprob, fullgraph=True, backend=frames)
    problem = on_device(make_problem([12], width=8, vocabulary=21).cast(torch.float32), device)
    head = [problem.tensors[name] for name in ("hidden", "weight", "targets")]
    head[0].requires_grad_()
    for step in range(6):
        found = [op(*head, temperature=0.9 - 0.1 * step) for op in (compiled, linear_logprob)]
        assert torch.equal(*found)
        assert torch.equal(*(torch.autograd.grad(logprob.sum(), head[0])[0] for logprob in found))
    assert frames.frame_count <= 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_logprob_compiles_inside_a_larger_function(device, dtype, autocast):
    problem = on_device(make_problem([12], width=8, vocabulary=21).cast(dtype), device)
    hidden, weight, targets = (problem.tensors[name] for name in ("hidden", "weight", "targets"))

    def loss(hidden, weight):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return linear_logprob(torch.tanh(hidden), weight * 2, targets).square().mean()

    outcomes = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight)]
        value = function(*leaves)
        outcomes.append((value.detach(), *torch.autograd.grad(value, leaves)))
    rounds = autocast or dtype == torch.bfloat16
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, want, rtol=0.02 if rounds else 1e-5, atol=1e-3 if rounds else 1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
def test_statistics_compile_without_a_graph_break(device, dynamic):
    """Used together, the entropy alone, and only looked at."""
    problem = on_device(make_problem([12], width=8, vocabulary=21, with_bias=True).cast(torch.float32), device)
    head = [problem.tensors[name] for name in ("hidden", "weight", "bias")]

    def run(hidden, weight, bias):
        targets = problem.tensors["targets"]
        logprob, statistics = linear_logprob(torch.tanh(hidden), weight, targets, bias=bias, statistics=True)
        entropy = statistics.entropy
        return logprob.square().mean() + entropy @ logprob, entropy.mean(), logprob.sum(), statistics.mean_logit

    outcomes = []
    for function in (run, torch.compile(run, fullgraph=True, dynamic=dynamic)):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in head]
        values = [value.detach() for value in function(*leaves)]
        gradients = [torch.autograd.grad(function(*leaves)[place], leaves) for place in range(3)]  # each graph once
        outcomes.append((*values, *sum(gradients, ())))
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_backward_pass_compiles_alone(device):
    """As torch's compiled autograd does."""
    problem = on_device(make_problem([3, 2, 5]).cast(torch.float32), device)
    whole_graph = torch.compile(backend="aot_eager", fullgraph=True)
    with compiled_autograd._enable(whole_graph):
        got = problem.run(upstream=0.5)
    assert_matches(on_cpu(got), on_cpu(problem.run(upstream=0.5)), forward=0.0, gradient=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_flow_loss_with_statistics_compiles(device):
    problem = on_device(make_problem([3, 0, 9, 1], width=8, vocabulary=21).cast(torch.float32), device)
    tensors = dict(problem.tensors)
    head = [tensors.pop(name) for name in ("hidden", "weight", "targets")]

    def run(*head):
        return flow_loss(*head, problem.cu_seqlens, **tensors, **problem.options, statistics=True)

    for got, want in zip(torch.compile(run, fullgraph=True)(*head), run(*head), strict=True):
        assert type(got) is type(want)
        assert all(map(torch.equal, got, want))


def test_a_gradient_that_was_not_computed_is_refused(device):
    arguments = list(flow_loss_arguments(device))
    arguments[-1] = [True, False, True, True]
    loss = flow_loss_operator.operator(*arguments)[0]
    with pytest.raises(RuntimeError, match=r"gradient of weight was not computed; .* `needs` that say so"):
        loss.backward()


def test_the_statistics_carry_no_gradient(device):
    outputs = flow_loss_operator.operator(*flow_loss_arguments(device))
    assert outputs[0].requires_grad
    assert not any(output.requires_grad for output in outputs[1:])


def test_the_narrower_type_of_hidden_and_weight_counts(device):
    """A bfloat16 body over a float32 head: the head's gradient keeps float32."""
    problem = on_device(make_problem([30, 20], width=32, vocabulary=100, ratio="token_mean"), device)
    problem = problem.cast(torch.bfloat16)
    expected = on_cpu(problem.run())
    problem.tensors["weight"] = problem.tensors["weight"].float()
    result, gradients = on_cpu(problem.run())
    assert torch.equal(result.token_logprob, expected[0].token_logprob)
    assert gradients["weight"].dtype == torch.float32 and gradients["hidden"].dtype == torch.bfloat16
    assert torch.equal(gradients["weight"].bfloat16(), expected[1]["weight"])


def test_autocast_decides_how_float32_inputs_are_multiplied(device):
    """In its type where the device multiplies that, as if the inputs had it."""
    problem = on_device(make_problem([30, 20], width=32, vocabulary=100, ratio="token_mean"), device)
    problem = problem.cast(torch.bfloat16).cast(torch.float32)  # values that bfloat16 holds
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got, gradients = on_cpu(problem.run())
    expected = on_cpu(problem.cast(torch.bfloat16).run())
    assert got.loss.dtype == gradients["hidden"].dtype == torch.float32
    assert torch.equal(got.token_logprob, expected[0].token_logprob)
    for name in ("hidden", "weight"):
        assert relative_error(gradients[name].bfloat16(), expected[1][name]) == 0


def test_meta_tensors_have_a_shape_and_a_type_alone():
    """Also under autocast, of which that device has none."""
    hidden, weight, targets = (torch.zeros(*shape, device="meta") for shape in ((2, 4), (3, 4), (2,)))
    with torch.autocast("cpu", torch.bfloat16):
        logprob = linear_logprob(hidden, weight, targets.long())
    assert logprob.is_meta and logprob.shape == (2,) and logprob.dtype == torch.float32
