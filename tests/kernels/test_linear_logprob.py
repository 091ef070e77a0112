"""linear_logprob against float64 autograd of the reference: what every implementation owes, and its own promises."""

import math

import pytest
import torch
from hypothesis import given

from eager_head import exact_logits
from fastflow_kernels import linear_logprob, logprob_blocks, reference
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.implementation import choose
from head_calls import HEAD, run_head, upstream_of
from implementations import (
    Implementation,
    by_every_implementation,
    by_those_in_float32,
    by_those_of_triton,
    panels_of,
)
from kernel_problems import head_tensors, norm_error, relative_error


@by_those_in_float32
def test_float32_equals_the_reference(implementation):
    """Up to logits so large that a target's probability underflows, where tiles disagree on a row's reference."""

    @implementation.tries()
    @given(call=implementation.heads((0.5, 10.0, 80.0, 300.0)), block_rows=implementation.block_sizes)
    def check(call, block_rows):
        tensors, options = call
        upstream = upstream_of(len(tensors["targets"]))[:1]
        got, want = implementation.run_both(implementation.inputs(tensors), upstream, block_rows=block_rows, **options)
        assert got.outputs[0].dtype == torch.float32
        assert (got.outputs[0] <= 0).all()
        implementation.assert_head_matches(got, want)

    check()


def test_float64_stays_float64():
    torch_alone = Implementation("torch", examples=60)

    @torch_alone.tries()
    @given(call=torch_alone.heads(), block_rows=torch_alone.block_sizes)
    def check(call, block_rows):
        tensors, options = call
        got, want = torch_alone.run_both(
            tensors, upstream_of(len(tensors["targets"]))[:1], block_rows=block_rows, **options
        )
        assert got.outputs[0].dtype == torch.float64
        assert relative_error(got.outputs[0], want.outputs[0]) <= 1e-11
        for name, gradient in want.gradients.items():
            assert relative_error(got.gradients[name], gradient) <= 1e-11, name

    check()


@by_every_implementation
@pytest.mark.parametrize("needs", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")])
def test_only_what_needs_a_gradient_gets_one(implementation, needs):
    tensors = implementation.head(9, seed=2)
    got, want = implementation.run_both(tensors, needs=needs, block_rows=4)
    assert set(got.gradients) == {name for name in needs if tensors[name] is not None}
    implementation.assert_head_matches(got, want)


@by_every_implementation
def test_no_rows(implementation):
    outcome = implementation.run_head(implementation.head(0))
    assert outcome.outputs[0].shape == (0,)
    assert not any(outcome.gradients[name].any() for name in ("weight", "hidden"))


@by_every_implementation
def test_rows_beyond_the_vocabulary_take_no_part(implementation):
    """A head padded with rows of large logits: log-probs are those of the real vocabulary, their gradient is 0."""
    tensors = implementation.head(20, seed=3)
    want = run_head(reference.linear_logprob, tensors, dtype=torch.float64)
    padded = dict(tensors)
    for name in ("weight", "bias"):
        if tensors[name] is not None:
            extra = tensors[name].new_full((128, *tensors[name].shape[1:]), 9.0)
            padded[name] = torch.cat([tensors[name], extra])
    got = implementation.run_head(padded, vocabulary=len(tensors["weight"]), block_rows=16)
    for name in padded.keys() & {"weight", "bias"} & got.gradients.keys():
        whole = got.gradients[name]
        got.gradients[name], beyond = whole[:-128], whole[-128:]
        assert not beyond.any() and got.gradients[name].any()
    implementation.assert_head_matches(got, want)


@by_every_implementation
@pytest.mark.parametrize("needs", [HEAD, ()])
def test_nan_stays_in_its_row(implementation, needs):
    """Of the statistics, too; beside a whole panel of -inf, and with the other rows as they are without it."""
    tensors, expected = implementation.head(20), torch.arange(20) == 5
    tensors["targets"].clamp_(min=8)
    if implementation.takes_all:
        tensors["bias"][:8] = -torch.inf
    exact = run_head(reference.linear_logprob, tensors, needs=(), dtype=torch.float64).outputs[0]
    tensors["hidden"][5, 2] = torch.nan
    for count in (1, 4) if implementation.takes_all else (1,):
        with panels_of(20 * 4 * 4):
            found = implementation.run_head(tensors, upstream_of(20)[:count], needs=needs, statistics=count == 4)
        assert [torch.equal(output.isnan(), expected) for output in found.outputs] == [True] * count
        implementation.assert_logprobs_match(found.outputs[0][~expected], exact[~expected])
        if needs:
            assert torch.equal(~found.gradients["hidden"].isfinite().all(1), expected)


@by_every_implementation
@pytest.mark.parametrize("depth", [30.0, 90.0, 200.0, 400.0, 2000.0])
@pytest.mark.parametrize("columns", [slice(192, 384), slice(200, 201)])
def test_improbable_targets(implementation, depth, columns):
    """A tile or a column lies below the rest by more than an exponential spans: finite, and as exact as any other."""
    tensors = implementation.head_with_lead(-depth, columns)
    tensors["targets"][::2] = columns.start + tensors["targets"][::2] % (columns.stop - columns.start)
    got, want = implementation.run_both(tensors)
    improbable = want.outputs[0] < 1 - depth
    assert improbable[::2].all() and not improbable.all()
    for rows, largest in ((improbable, depth + 4), (~improbable, 4.0)):
        implementation.assert_logprobs_match(got.outputs[0][rows], want.outputs[0][rows], largest)
    assert all(part.isfinite().all() for part in (*got.outputs, *got.gradients.values()))
    implementation.assert_head_matches(got, want, largest_logit=depth + 4)


@by_every_implementation
def test_one_logit_far_above_all_tiles(implementation):
    """One tile's exponentials overflow, and the others' vanish against it."""
    tensors = implementation.head_with_lead(500.0, slice(300, 301))
    tensors["targets"][3] = 300
    got, want = implementation.run_both(tensors)
    assert all(part.isfinite().all() for part in (*got.outputs, *got.gradients.values()))
    implementation.assert_head_matches(got, want, largest_logit=504)


@by_those_of_triton
def test_a_target_that_no_column_has_becomes_nan_alone(implementation):
    """Where the door does not ask, since asking would wait for the device."""
    tensors = implementation.head(20, with_bias=False)
    tensors["targets"] %= 128
    weight = tensors["weight"].to(implementation.device)
    head = Head.of(factors_of(weight, weight.dtype, vocabulary=128), None)
    hidden, targets = tensors["hidden"].to(head.weight), tensors["targets"].to(implementation.device)
    targets[3], targets[5], targets[19] = 130, -100, 2**33  # the first one in the padding
    choice = choose(implementation.device, head.weight.dtype, head)
    logprob = logprob_blocks.logprobs(hidden, targets, head, choice)
    options = {"need_hidden": True, "weight": None, "bias": None}
    upstream = torch.ones(20, device=implementation.device)
    d_hidden, d_weight, _ = logprob_blocks.gradients(upstream, hidden, targets, head, choice, None, None, **options)
    assert d_weight is None
    for found in (logprob, d_hidden.sum(1)):
        assert found.isnan().nonzero().flatten().tolist() == [3, 5, 19]
    fine = torch.ones(20, dtype=torch.bool)
    fine[[3, 5, 19]] = False
    kept = tensors | {name: tensors[name][fine] for name in ("hidden", "targets")}
    want = run_head(reference.linear_logprob, kept, [torch.ones(17)], torch.float64, vocabulary=128)
    assert norm_error(d_hidden[fine].cpu(), want.gradients["hidden"]) <= implementation.gradient


def test_gradcheck():
    tensors = head_tensors(7, width=3, vocabulary=6, seed=1, with_bias=True)

    def logprob(hidden, weight, bias):
        return linear_logprob(hidden, weight, tensors["targets"], bias=bias, temperature=0.8, block_rows=3)

    assert torch.autograd.gradcheck(logprob, tuple(tensors[name].requires_grad_() for name in HEAD))


def test_hand_worked_example():
    """Logits (0, ln 3) at temperature 1 and (0, ln 9) at 1/2: target 1 has probability 3/4, then 9/10."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [math.log(3.0)]], requires_grad=True)
    target = torch.tensor([1])
    assert linear_logprob(hidden, weight, target).item() == pytest.approx(math.log(0.75), rel=1e-6)
    logprob = linear_logprob(hidden, weight, target, temperature=0.5)
    assert logprob.item() == pytest.approx(math.log(0.9), rel=1e-6)
    logprob.backward(torch.tensor([3.0]))  # 3 * (onehot - p) / temperature
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.6], [0.6]]))


def test_no_grad_gives_the_same_numbers():
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2)
    hidden, weight = tensors["hidden"].float().requires_grad_(), tensors["weight"].float()
    with_grad = linear_logprob(hidden, weight, tensors["targets"])
    with torch.no_grad():
        without = linear_logprob(hidden, weight, tensors["targets"])
    assert not without.requires_grad
    assert torch.equal(without, with_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    """Against float64 on the same rounded inputs: logits never rounded, gradients once."""
    tensors = head_tensors(40, width=32, vocabulary=100, seed=4, logit_limit=20.0, with_bias=True)
    tensors = {name: value if name == "targets" else value.to(dtype) for name, value in tensors.items()}
    with exact_logits():
        got = run_head(linear_logprob, tensors, upstream_of(40)[:1], block_rows=16)
    want = run_head(reference.linear_logprob, tensors, upstream_of(40)[:1], torch.float64)
    assert got.outputs[0].dtype == torch.float32
    assert relative_error(got.outputs[0], want.outputs[0]) <= 1e-5
    for name, gradient in want.gradients.items():
        assert got.gradients[name].dtype == dtype
        assert relative_error(got.gradients[name], gradient) <= torch.finfo(dtype).eps / 2 + 1e-4, name


def test_autocast_only_chooses_the_type_of_the_products():
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2, with_bias=True)
    plain = run_head(linear_logprob, tensors, dtype=torch.float32)
    with exact_logits(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = run_head(linear_logprob, tensors, dtype=torch.float32)
    assert torch.equal(got.outputs[0], plain.outputs[0])
    for name in HEAD:
        assert torch.equal(got.gradients[name], plain.gradients[name])


def test_no_second_derivative():
    tensors = head_tensors(3, width=4, vocabulary=12, seed=2)
    hidden = tensors["hidden"].requires_grad_()
    logprob = linear_logprob(hidden, tensors["weight"], tensors["targets"])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(logprob.sum(), hidden, create_graph=True)
    logprob.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        logprob.sum().backward()
