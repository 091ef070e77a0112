"""flow_loss against float64 autograd of the reference: what every implementation owes, and its docstring's promises."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from eager_head import exact_logits
from fastflow_kernels import flow_loss, reference
from implementations import by_every_implementation, by_those_in_float32, panels_of
from kernel_problems import (
    GRADIENTS,
    assert_gradients_match,
    assert_matches,
    make_problem,
    on_device,
    problems,
    relative_error,
)

LENGTHS = [20, 1, 0, 45, 7]
block_sizes = st.sampled_from([1, 2, 3, 7, 64, None])


@by_those_in_float32
def test_float32_equals_the_reference(implementation):
    """A residual of 0.5 is what is left of log-probs of up to 80: float32 holds those to 4e-6, the loss to 3e-5."""

    @implementation.tries()
    @given(
        problem=implementation.problems(),
        block_rows=implementation.block_sizes,
        needs=st.sampled_from([GRADIENTS, GRADIENTS, ()]),
        panel_bytes=st.sampled_from([200, 2**30]),
    )
    def check(problem, block_rows, needs, panel_bytes):
        problem = problem.cast(torch.float32)
        with panels_of(panel_bytes):
            result, gradients = implementation.run(problem, needs=needs, block_rows=block_rows)
        oracle = problem.oracle(needs=needs)
        assert relative_error(result.token_logprob, oracle[0].token_logprob.detach()) <= implementation.token_logprob
        assert_matches((result, {}), (oracle[0], {}), forward=implementation.result, gradient=0.0)
        implementation.assert_gradients_match(problem, gradients, oracle)

    check()


@settings(deadline=None, max_examples=100)
@given(problem=problems(), block_rows=block_sizes)
def test_float64_stays_float64(problem, block_rows):
    got = problem.run(block_rows=block_rows)
    assert all(value.dtype == torch.float64 for value in got[0])
    assert_matches(got, problem.oracle(), forward=1e-11, gradient=1e-11)


@settings(deadline=None, max_examples=100)
@given(
    problem=problems(logit_limits=st.sampled_from([40.0, 80.0]), length_aware=st.just(True)),
    block_rows=block_sizes,
)
def test_large_logits(problem, block_rows):
    """Logits to |80|: exp of them overflows nothing, and a probability next to one loses no digits.

    The ratio is held at its clip bounds: the exponent of another is a difference of sums of up to 1e3.
    """
    problem.options.update(clip_low=0.0, clip_high=0.0)
    result, gradients = problem.cast(torch.float32).run(block_rows=block_rows)
    expected, expected_gradients = problem.oracle()
    for name in ("token_logprob", "logprob"):
        assert relative_error(getattr(result, name), getattr(expected, name).detach()) <= 1e-5
    assert_gradients_match(problem, gradients, expected, expected_gradients)


def test_a_probability_next_to_one_keeps_its_digits():
    """log p = -e^-40: log(1 - 4e-18) and 1 - softmax are 0 in float32, the answers are not."""
    hidden = torch.tensor([[40.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]])
    sequence = {"log_z": torch.ones(1), "log_target": torch.zeros(1), "behaviour_logprob": torch.zeros(1)}
    result = flow_loss(
        hidden,
        weight,
        torch.tensor([0]),
        torch.tensor([0, 1]),
        **sequence,
        length_scale=torch.ones(1),
        clip_low=0.2,
        clip_high=0.2,
        normaliser=1,
    )
    result.loss.backward()
    small = math.exp(-40)
    assert result.token_logprob.item() == pytest.approx(-small, rel=1e-6)
    assert hidden.grad.item() == pytest.approx(2 * small, rel=1e-6)


def test_hand_worked_example():
    """Two sequences over a vocabulary of two; logits (0, ln 3), so probabilities (1/4, 3/4).

    s=0: one token 1, logprob ln .75 = -.287682; residual .5 - .287682 = .212318; ratio e^0 = 1.
    s=1: tokens 0 and 1, logprob ln .1875 = -1.673976, halved -.836988, residual -.836988 + .1 = -.736988;
         ratio e^(-1.673976 + 1) = .509679, clipped to .8.
    loss = (1 * .045079 + .8 * .543151) / 2 = .239800; its log_z gradient (.212318, -.589590).
    d loss / d logits: c (onehot - p), c_0 = .212318, c_1 = -.589590 / 2 = -.294795; p = (.25, .75).
    """
    hidden = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3.0)]], requires_grad=True)
    log_z = torch.tensor([0.5, 0.1], requires_grad=True)
    result = flow_loss(
        hidden,
        weight,
        torch.tensor([1, 0, 1]),
        torch.tensor([0, 1, 3], dtype=torch.int32),
        log_z=log_z,
        log_target=torch.zeros(2),
        length_scale=torch.tensor([1.0, 0.5]),
        behaviour_logprob=torch.tensor([math.log(0.75), -1.0]),
        clip_low=0.2,
        clip_high=0.28,
        normaliser=2,
    )
    result.loss.backward()
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(result.loss, torch.tensor(0.239800), **close)
    torch.testing.assert_close(result.logprob, torch.tensor([-0.287682, -1.673976]), **close)
    torch.testing.assert_close(result.residual, torch.tensor([0.212318, -0.736988]), **close)
    torch.testing.assert_close(result.raw_ratio, torch.tensor([1.0, 0.509679]), **close)
    torch.testing.assert_close(result.importance, torch.tensor([1.0, 0.8]), **close)
    torch.testing.assert_close(log_z.grad, torch.tensor([0.212318, -0.589590]), **close)
    # d_weight_1 = c_0 (1 - .75) + c_1 (0 - .75) + c_1 (1 - .75) = .053080 + .221096 - .073699 = -d_weight_0
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.200477], [0.200477]]), **close)
    # d_hidden = (d_logits_1) ln 3, row by row
    expected = torch.tensor([[0.053080], [0.221096], [-0.073699]]) * math.log(3.0)
    torch.testing.assert_close(hidden.grad, expected, **close)


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
def test_clipping_on_both_sides(ratio):
    problem = make_problem([3, 4, 2, 5, 6], seed=3, ratio=ratio)
    offsets = torch.tensor([2.0, -2.0, 0.1, 500.0, -500.0]).double()
    exponent = offsets * (problem.cu_seqlens.diff() if ratio == "token_mean" else 1)
    result, _ = problem.oracle()
    problem.tensors["behaviour_logprob"] = result.logprob.detach() - exponent
    got = problem.cast(torch.float32).run()
    expected = torch.tensor([1.28, 0.8, math.exp(0.1), 1.28, 0.8])
    torch.testing.assert_close(got[0].importance, expected, rtol=1e-4, atol=0)
    want = problem.oracle()
    for name, gradient in want[1].items():
        assert relative_error(got[1][name], gradient) <= 1e-4 if gradient is not None else True


def test_the_weight_is_not_differentiated():
    """Halving the behaviour probability doubles an unclipped weight, hence every gradient."""
    problem = make_problem([4], clip_low=1.0, clip_high=math.inf)
    _, once = problem.run()
    problem.tensors["behaviour_logprob"] -= math.log(2.0)
    _, twice = problem.run()
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient)


def test_finite_differences():
    """Where the weight is a constant: clip bounds that force it to one. (gradcheck calls backward twice.)"""
    problem = make_problem([3, 0, 5, 1], with_bias=True, clip_low=0.0, clip_high=0.0)
    _, gradients = problem.run(block_rows=2)
    step = 1e-6
    for name, gradient in gradients.items():
        flat = problem.tensors[name].view(-1)
        for index, slope in enumerate(gradient.view(-1).tolist()):
            losses = []
            for offset in (step, -step):
                flat[index] += offset
                losses.append(problem.run(needs=())[0].loss.item())
                flat[index] -= offset
            assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-8), name


def test_reference_gradcheck():
    """The oracle itself."""
    problem = make_problem([3, 0, 2], vocabulary=6, with_bias=True, clip_low=0.0, clip_high=0.0)
    tensors = problem.tensors
    constants = {name: tensors[name] for name in ("log_target", "length_scale", "behaviour_logprob")}

    def loss(hidden, weight, bias, log_z):
        named = {**constants, **problem.options, "bias": bias, "log_z": log_z}
        return reference.flow_loss(hidden, weight, tensors["targets"], problem.cu_seqlens, **named).loss

    inputs = tuple(tensors[name].requires_grad_() for name in ("hidden", "weight", "bias", "log_z"))
    assert torch.autograd.gradcheck(loss, inputs)


@by_every_implementation
@pytest.mark.parametrize("frozen", [*[(name,) for name in GRADIENTS], ("weight", "bias")])
@pytest.mark.parametrize("is_kept", [True, False], ids=["all but", "alone"])
def test_only_what_needs_a_gradient_gets_one(implementation, frozen, is_kept):
    problem = implementation.problem([20, 2, 15])
    had = [name for name in GRADIENTS if problem.tensors[name] is not None]
    needs = tuple(name for name in had if (name not in frozen) == is_kept)
    whole, part = (implementation.run(problem, needs=some, block_rows=16) for some in (GRADIENTS, needs))
    implementation.assert_matches(whole, problem.oracle())
    wanted = {name: whole[1][name] for name in needs}
    assert_matches(part, (whole[0], wanted), forward=1e-6, gradient=1e-5)


@by_every_implementation
@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
@pytest.mark.parametrize("block_rows", [None, 32, 17])
def test_sequences_longer_than_a_block(implementation, ratio, block_rows):
    problem = implementation.problem(LENGTHS, ratio=ratio)
    implementation.assert_matches(implementation.run(problem, block_rows=block_rows), problem.oracle())


@by_every_implementation
def test_two_runs_are_bitwise_equal(implementation):
    problem = implementation.problem(LENGTHS)
    first, second = (implementation.run(problem, block_rows=32) for _ in range(2))
    assert_matches(first, second, forward=0.0, gradient=0.0)


@by_those_in_float32
def test_small_inputs_need_not_be_dense(implementation):
    """Targets, offsets and the numbers per sequence may stand anywhere in memory."""
    problem = on_device(make_problem([3, 0, 9, 5], width=9, vocabulary=70), implementation.device)
    head = ("hidden", "weight", "bias")
    tensors = {
        key: value.float() if value is not None and key in head else value for key, value in problem.tensors.items()
    }
    strided = {
        key: value if value is None or key in head else torch.stack([value, value * 0 + 1], dim=1)[:, 0]
        for key, value in tensors.items()
    }
    strided["length_scale"] = torch.full((1,), 0.2, dtype=torch.float64, device=implementation.device).expand(4)
    tensors["length_scale"] = strided["length_scale"].clone()
    offsets = torch.stack([problem.cu_seqlens.long(), torch.zeros(5).long()], dim=1)
    dense = flow_loss(cu_seqlens=problem.cu_seqlens, **tensors, **problem.options)
    for place in ("cpu", implementation.device):
        loose = flow_loss(cu_seqlens=offsets.to(place)[:, 0], **strided, **problem.options)
        assert all(torch.equal(got, want) for got, want in zip(loose, dense, strict=True))


def test_only_the_loss_carries_gradient():
    result, _ = make_problem([2, 3]).run(needs=("hidden", "weight", "log_z"))
    assert result.loss.requires_grad
    assert not any(value.requires_grad for value in result[1:])


def test_no_grad_gives_the_same_numbers():
    problem = make_problem([2, 7, 3]).cast(torch.float32)
    expected, _ = problem.run(block_rows=4)
    tensors = {name: value for name, value in problem.tensors.items() if name not in ("hidden", "weight", "targets")}
    head = [problem.tensors[name] for name in ("hidden", "weight")]
    for tensor in head:
        tensor.requires_grad_()
    with torch.no_grad():
        result = flow_loss(
            *head, problem.tensors["targets"], problem.cu_seqlens, **tensors, **problem.options, block_rows=4
        )
    assert not result.loss.requires_grad
    for got, want in zip(result, expected, strict=True):
        assert torch.equal(got, want)


@by_every_implementation
@pytest.mark.parametrize("upstream", [-3.5, -0.37])
def test_upstream_gradient_scales(implementation, upstream):
    problem = implementation.problem(LENGTHS, ratio="token_mean")
    implementation.assert_matches(implementation.run(problem, upstream=upstream), problem.oracle(upstream=upstream))


@by_every_implementation
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [0, 3, 0, 12, 0]])
def test_empty_sequences_add_nothing(implementation, lengths):
    """Also where their other inputs are inf and nan, next to a sequence longer than a block."""
    problem = implementation.problem(lengths or [0])
    if not lengths:
        per_sequence = ("log_z", "log_target", "length_scale", "behaviour_logprob")
        problem.tensors.update({name: problem.tensors[name][:0] for name in per_sequence})
        problem = replace(problem, cu_seqlens=problem.cu_seqlens[:1])
    result, gradients = implementation.run(problem, block_rows=5)
    for value in (*result, *gradients.values()):
        assert value.isfinite().all()
    empty = [index for index, length in enumerate(lengths) if length == 0]
    assert (gradients["log_z"][empty] == 0).all() and (result.residual[empty] == 0).all()
    assert (result.logprob[empty] == 0).all() and (result.raw_ratio[empty] == 1).all()
    if sum(lengths) == 0:
        assert result.loss == 0 and not any(gradients[name].any() for name in gradients.keys() & {"weight", "bias"})
    else:
        implementation.assert_matches((result, gradients), problem.oracle())


def test_a_second_backward_says_why():
    problem = make_problem([3]).cast(torch.float32)
    tensors = dict(problem.tensors)
    hidden = tensors.pop("hidden").requires_grad_()
    loss = flow_loss(hidden, cu_seqlens=problem.cu_seqlens, **tensors, **problem.options).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call flow_loss again"):
        loss.backward()
    loss = flow_loss(hidden, cu_seqlens=problem.cu_seqlens, **tensors, **problem.options).loss
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    """Against float64 on the same rounded inputs: log-probs as in float32, gradients rounded once.

    (test_cpu_bfloat16.py: where a CPU's products round the logits.)"""
    problem = make_problem([6, 1, 17, 4], width=16, vocabulary=50, with_bias=True).cast(dtype)
    with exact_logits():
        result, gradients = problem.run(block_rows=8)
    expected, expected_gradients = problem.oracle()
    assert result.token_logprob.dtype == result.loss.dtype == torch.float32
    assert relative_error(result.token_logprob, expected.token_logprob.detach()) <= 1e-5
    # the (S,) inputs were made for the unrounded head: the residuals are compared, not their conditioning
    assert relative_error(result.loss, expected.loss.detach()) <= 1e-4
    for name, want in expected_gradients.items():
        got = gradients[name]
        assert got.dtype == (torch.float32 if name == "log_z" else dtype)
        assert relative_error(got, want) <= torch.finfo(dtype).eps / 2 + 1e-4, name


def test_autocast_only_chooses_the_type_of_the_products():
    problem = make_problem([4, 9], with_bias=True).cast(torch.float32)
    plain = problem.run(block_rows=5)
    with exact_logits(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = problem.run(block_rows=5)
    assert_matches(got, plain, forward=0.0, gradient=0.0)


@settings(deadline=None, max_examples=40)
@given(problem=problems(), block_rows=st.integers(1, 20))
def test_block_size_changes_only_the_rounding(problem, block_rows):
    one_block = problem.run(block_rows=10_000)
    assert_matches(problem.run(block_rows=block_rows), one_block, forward=1e-12, gradient=1e-12)


def test_a_sequence_of_100k_tokens():
    """Its log-prob is a sum of 1e5 terms; it accumulates over many blocks beside an ordinary neighbour."""
    problem = make_problem([40, 100_000, 7], width=2, vocabulary=4, ratio="token_mean")
    got = problem.cast(torch.float32).run(block_rows=8192)
    assert_matches(got, problem.oracle(), forward=1e-5, gradient=1e-4)


def test_inputs_need_not_be_contiguous():
    problem = make_problem([4, 6]).cast(torch.float32)
    expected = problem.run()
    for name in ("hidden", "weight"):
        padded = torch.full((problem.tensors[name].shape[1] + 3, problem.tensors[name].shape[0]), torch.nan)
        padded[:-3] = problem.tensors[name].t()
        problem.tensors[name] = padded[:-3].t()
        assert not problem.tensors[name].is_contiguous()
    tensors = {name: value for name, value in problem.tensors.items() if value is not None}
    hidden, weight = tensors.pop("hidden").requires_grad_(), tensors.pop("weight").requires_grad_()
    result = flow_loss(hidden, weight, cu_seqlens=problem.cu_seqlens.long(), **tensors, **problem.options)
    d_hidden, d_weight = torch.autograd.grad(result.loss, (hidden, weight))
    assert relative_error(result.loss, expected[0].loss) == 0
    assert relative_error(d_hidden, expected[1]["hidden"]) == 0
    assert relative_error(d_weight, expected[1]["weight"]) == 0


def test_micro_batches_add_up():
    """With one normaliser, the gradient of a batch is the sum of those of its parts."""
    problem = make_problem([3, 5, 2, 4], normaliser=4)
    _, whole = problem.run()
    edge, sequences = int(problem.cu_seqlens[2]), 2
    parts = []
    for rows, own in ((slice(0, edge), slice(0, sequences)), (slice(edge, None), slice(sequences, None))):
        tensors = {}
        for name, value in problem.tensors.items():
            cut = rows if name in ("hidden", "targets") else own
            tensors[name] = value if name == "weight" or value is None else value[cut]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int32), problem.cu_seqlens.diff()[own].cumsum(0).int()])
        parts.append(type(problem)(tensors, offsets, problem.options).run()[1])
    torch.testing.assert_close(parts[0]["weight"] + parts[1]["weight"], whole["weight"])
    torch.testing.assert_close(torch.cat([part["hidden"] for part in parts]), whole["hidden"])
