"""linear_logprob against float64 autograd of the reference, for arbitrary upstream gradients."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from eager_head import exact_logits
from fastflow_kernels import linear_logprob, reference
from kernel_problems import head_tensors, relative_error

HEAD = ("hidden", "weight", "bias")
block_sizes = st.sampled_from([1, 2, 3, 7, None])


def run(op, tensors, upstream, dtype, needs=HEAD, **options):
    """Log-probs, and the gradients of their product with `upstream`."""
    leaves = {
        name: tensors[name].detach().to(dtype).requires_grad_(name in needs)
        for name in HEAD
        if tensors[name] is not None
    }
    named = {"bias": leaves.get("bias"), **options}
    logprob = op(leaves["hidden"], leaves["weight"], tensors["targets"], **named)
    logprob.backward(upstream.to(logprob.dtype))
    return logprob.detach(), {name: leaf.grad for name, leaf in leaves.items() if name in needs}


@st.composite
def heads(draw, logit_limits):
    row_count, seed = draw(st.integers(0, 20)), draw(st.integers(0, 10_000))
    tensors = head_tensors(
        row_count,
        width=draw(st.integers(1, 9)),
        vocabulary=draw(st.integers(1, 40)),
        seed=seed,
        logit_limit=draw(logit_limits),
        with_bias=draw(st.booleans()),
    )
    generator = torch.Generator().manual_seed(seed)
    return tensors, torch.randn(row_count, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=150)
@given(
    head=heads(st.sampled_from([0.5, 10.0, 80.0])),
    block_rows=block_sizes,
    temperature=st.sampled_from([1.0, 0.7, 3.0]),
    softcap=st.sampled_from([None, 5.0, 30.0]),
)
def test_float32_equals_the_reference(head, block_rows, temperature, softcap):
    """A saturated soft-cap has a slope of 1 - tanh^2, of which float32 keeps 7 digits of the 1: kept out of reach."""
    tensors, upstream = head
    if softcap is not None:
        tensors = {**tensors, "hidden": tensors["hidden"] / 32}
    options = {"temperature": temperature, "softcap": softcap}
    got = run(linear_logprob, tensors, upstream, torch.float32, **options, block_rows=block_rows)
    want = run(reference.linear_logprob, tensors, upstream, torch.float64, **options)
    assert got[0].dtype == torch.float32
    assert (got[0] <= 0).all()
    assert relative_error(got[0], want[0]) <= 1e-5
    for name, gradient in want[1].items():
        assert relative_error(got[1][name], gradient) <= 1e-4, name


@settings(deadline=None, max_examples=60)
@given(head=heads(st.sampled_from([2.0, 30.0])), block_rows=block_sizes)
def test_float64_stays_float64(head, block_rows):
    tensors, upstream = head
    options = {"temperature": 0.5, "softcap": 20.0}
    got = run(linear_logprob, tensors, upstream, torch.float64, block_rows=block_rows, **options)
    want = run(reference.linear_logprob, tensors, upstream, torch.float64, **options)
    assert got[0].dtype == torch.float64
    assert relative_error(got[0], want[0]) <= 1e-11
    for name, gradient in want[1].items():
        assert relative_error(got[1][name], gradient) <= 1e-11, name


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


@pytest.mark.parametrize("needs", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")])
def test_only_what_needs_a_gradient_gets_one(needs):
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2, with_bias=True)
    upstream = torch.randn(9, generator=torch.Generator().manual_seed(0))
    _, got = run(linear_logprob, tensors, upstream, torch.float32, needs=needs, block_rows=4)
    _, want = run(reference.linear_logprob, tensors, upstream, torch.float64, needs=needs)
    assert set(got) == set(needs)
    for name in needs:
        assert relative_error(got[name], want[name]) <= 1e-4, name


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
    upstream = torch.randn(40, generator=torch.Generator().manual_seed(0))
    with exact_logits():
        got = run(linear_logprob, tensors, upstream, dtype, block_rows=16)
    want = run(reference.linear_logprob, tensors, upstream.double(), torch.float64)
    assert got[0].dtype == torch.float32
    assert relative_error(got[0], want[0]) <= 1e-5
    for name, gradient in want[1].items():
        assert got[1][name].dtype == dtype
        assert relative_error(got[1][name], gradient) <= torch.finfo(dtype).eps / 2 + 1e-4, name


def test_autocast_only_chooses_the_type_of_the_products():
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2, with_bias=True)
    upstream = torch.ones(9)
    plain = run(linear_logprob, tensors, upstream, torch.float32)
    with exact_logits(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(linear_logprob, tensors, upstream, torch.float32)
    assert torch.equal(got[0], plain[0])
    for name in HEAD:
        assert torch.equal(got[1][name], plain[1][name])


def test_no_second_derivative():
    tensors = head_tensors(3, width=4, vocabulary=12, seed=2)
    hidden = tensors["hidden"].requires_grad_()
    logprob = linear_logprob(hidden, tensors["weight"], tensors["targets"])
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(logprob.sum(), hidden, create_graph=True)
    logprob.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        logprob.sum().backward()


@pytest.mark.parametrize("with_bias", [True, False])
def test_rows_beyond_the_vocabulary_take_no_part(with_bias):
    """A head padded with rows of large logits: log-probs are those of the real vocabulary, their gradient is 0."""
    tensors = head_tensors(5, width=4, vocabulary=10, seed=3, with_bias=with_bias)
    upstream = torch.randn(5, generator=torch.Generator().manual_seed(0))
    want = run(reference.linear_logprob, tensors, upstream, torch.float64)
    padded = tensors | {"weight": torch.cat([tensors["weight"], torch.full((6, 4), 9.0).double()])}
    if with_bias:
        padded["bias"] = torch.cat([tensors["bias"], torch.full((6,), 9.0).double()])
    got = run(linear_logprob, padded, upstream, torch.float64, vocabulary=10, block_rows=2)
    torch.testing.assert_close(got[0], want[0])
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name][: len(gradient)], gradient)
        assert not got[1][name][len(gradient) :].any()
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 3\)"):
        linear_logprob(tensors["hidden"], tensors["weight"], torch.tensor([0, 1, 2, 3, 0]), vocabulary=3)
