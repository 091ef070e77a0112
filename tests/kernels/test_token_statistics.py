"""Entropy, logsumexp and mean logit of each row, and their gradients, against float64 autograd of the reference."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from eager_head import exact_logits
from fastflow_kernels import TokenStatistics, explain, flow_loss, linear_logprob, reference
from head_calls import HEAD, rounding_of, run_head, upstream_of
from implementations import Implementation, by_those_in_float32, by_those_on_the_cpu, panels_of
from kernel_problems import (
    GRADIENTS,
    ORACLE_ROUNDING,
    assert_matches,
    gradients_of_peaked_rows,
    head_tensors,
    largest,
    make_problem,
    norm_error,
    relative_error,
)

ANY_OF_THREE = st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any)


def assert_equal(got, want, value: float, gradient: float, rounding) -> None:
    """rounding: of the two whose terms cancel, entropy and mean logit, and of each gradient."""
    of_logits, of_gradients = rounding
    for name, found, expected in zip(("logprob", *TokenStatistics._fields), got.outputs, want.outputs, strict=True):
        assert found.shape == expected.shape
        cancels = of_logits if name in ("entropy", "mean_logit") else 0.0
        assert largest(found.double() - expected) <= value * largest(expected) + cancels + ORACLE_ROUNDING, name
    assert got.gradients.keys() == want.gradients.keys()
    for name, expected in want.gradients.items():
        error = largest(got.gradients[name].double() - expected)
        assert error <= gradient * largest(expected) + of_gradients[name], f"gradient of {name}"


@by_those_in_float32
def test_float32_equals_the_reference(implementation):
    """Whichever of log-prob, entropy and logsumexp have a gradient."""

    @implementation.tries()
    @given(
        call=implementation.heads(),
        which=ANY_OF_THREE,
        block_rows=implementation.block_sizes,
        panel_bytes=st.sampled_from([50, 2**20]),
    )
    def check(call, which, block_rows, panel_bytes):
        tensors, options = call
        upstream = upstream_of(len(tensors["targets"]), which=which)
        with panels_of(panel_bytes):
            got, want = implementation.run_both(
                implementation.inputs(tensors), upstream, block_rows=block_rows, statistics=True, **options
            )
        assert all(values.dtype == torch.float32 for values in got.outputs)
        assert (got.outputs[1] >= 0).all()
        rounding = rounding_of(tensors, upstream, torch.float32, options)
        assert_equal(got, want, value=1e-5, gradient=1e-4, rounding=rounding)

    check()


def test_float64_stays_float64():
    torch_alone = Implementation("torch", examples=60)

    @torch_alone.tries()
    @given(call=torch_alone.heads(), which=ANY_OF_THREE, block_rows=torch_alone.block_sizes)
    def check(call, which, block_rows):
        tensors, options = call
        upstream = upstream_of(len(tensors["targets"]), which=which)
        got, want = torch_alone.run_both(tensors, upstream, block_rows=block_rows, statistics=True, **options)
        assert all(values.dtype == torch.float64 for values in got.outputs)
        rounding = rounding_of(tensors, upstream, torch.float64, options)
        assert_equal(got, want, value=1e-11, gradient=1e-11, rounding=rounding)

    check()


def test_gradcheck():
    tensors = head_tensors(7, width=3, vocabulary=6, seed=1, with_bias=True)

    def outputs(hidden, weight, bias):
        options = {"bias": bias, "temperature": 0.8, "softcap": 9.0, "block_rows": 3, "statistics": True}
        logprob, statistics = linear_logprob(hidden, weight, tensors["targets"], **options)
        return logprob, statistics.entropy, statistics.logsumexp

    assert torch.autograd.gradcheck(outputs, tuple(tensors[name].requires_grad_() for name in HEAD))


def test_hand_worked_example():
    """Logits (0, ln 3): p = (1/4, 3/4); d entropy / d logit_1 = -p_1 (ln p_1 + entropy) = -(3/16) ln 3."""
    weight = torch.tensor([[0.0], [math.log(3.0)]], requires_grad=True)
    _, statistics = linear_logprob(torch.ones(1, 1), weight, torch.tensor([0]), statistics=True)
    assert statistics.entropy.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), rel=1e-6)
    assert statistics.logsumexp.item() == pytest.approx(math.log(4), rel=1e-6)
    assert statistics.mean_logit.item() == pytest.approx(math.log(3) / 2, rel=1e-6)
    statistics.entropy.sum().backward()
    slope = 3 / 16 * math.log(3)
    torch.testing.assert_close(weight.grad, torch.tensor([[slope], [-slope]]))


def test_a_uniform_distribution_has_the_largest_entropy_and_no_slope():
    hidden = torch.ones(2, 3, requires_grad=True)
    logprob, statistics = linear_logprob(hidden, torch.full((1000, 3), 0.5), torch.tensor([0, 999]), statistics=True)
    torch.testing.assert_close(statistics.entropy, torch.full((2,), math.log(1000)), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.entropy, -logprob, rtol=1e-6, atol=0)
    statistics.entropy.sum().backward()
    assert hidden.grad.abs().max() <= 1e-5


@by_those_on_the_cpu
@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_a_nearly_certain_token_keeps_the_digits_of_its_entropy(implementation, gap):
    """Entropies down to 1e-24, and gradients as small, relative to themselves."""
    tensors = {"hidden": torch.ones(1, 1), "targets": torch.tensor([1]), "weight": torch.tensor([[0.0], [gap], [-3.0]])}
    weight, others = tensors["weight"][:, 0].double(), torch.tensor([0, 2])
    below = weight[others] - gap
    total = 1 + below.exp().sum()
    p = below.exp() / total
    entropy = torch.log1p(below.exp().sum()) - (p * below).sum()
    got = implementation.run_head(tensors, (None, torch.ones(1), None), statistics=True)
    assert got.outputs[1].item() == pytest.approx(entropy.item(), rel=1e-6, abs=0)
    slopes = -p * (below - total.log() + entropy)
    gradient = got.gradients["weight"]
    torch.testing.assert_close(gradient[others, 0].double(), slopes, rtol=2e-6, atol=0)
    assert gradient[1].item() == pytest.approx(-slopes.sum().item(), rel=2e-6, abs=0)


@by_those_in_float32
def test_an_unlikely_target_takes_no_digits_of_a_peaked_rows_entropy(implementation):
    """The gradient of each row, some 1e-3, within a hundredth of the rounding of its target's log-prob, 4e-6."""
    got = gradients_of_peaked_rows(linear_logprob, implementation.device).cpu()
    want = gradients_of_peaked_rows(reference.linear_logprob)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)


@by_those_in_float32
@pytest.mark.parametrize("statistics", [False, True])
def test_logits_of_minus_infinity_have_no_share(implementation, statistics):
    """A whole panel or tile of them, too; the mean logit is -inf by its definition."""
    tensors = implementation.head(3)
    tensors["targets"] = torch.tensor([9, 130, 131])
    kept = torch.ones(150, dtype=torch.bool)
    kept[:8] = kept[64:129] = False
    tensors["bias"][~kept] = -torch.inf
    upstream = upstream_of(3, which=(True, statistics, statistics))
    with panels_of(3 * 4 * 4):
        got = implementation.run_head(tensors, upstream, statistics=statistics)
    alive = {**tensors, "weight": tensors["weight"][kept], "bias": tensors["bias"][kept]}
    alive["targets"] = kept.cumsum(0)[tensors["targets"]] - 1
    want = run_head(reference.linear_logprob, alive, upstream, torch.float64, statistics=statistics)
    full = run_head(reference.linear_logprob, tensors, upstream, torch.float64, statistics=statistics)
    for exact in (want, full):
        assert all(relative_error(a, b) <= 1e-5 for a, b in zip(got.outputs[:3], exact.outputs[:3], strict=True))
    assert not statistics or (got.outputs[3] == -torch.inf).all()
    for name, expected in want.gradients.items():
        gradient = got.gradients[name] if name == "hidden" else got.gradients[name][kept]
        assert relative_error(gradient, expected) <= 1e-4, name


@by_those_in_float32
@pytest.mark.parametrize(
    "which", [(False, True, False), (False, False, True), (True, False, False), (True, True, True)]
)
def test_a_target_that_cannot_be_drawn(implementation, which):
    """Its log-prob is -inf; the gradients are those of the others, which lose what it would gain. Entropy and
    logsumexp do not depend on the target, nor does their gradient."""
    tensors = implementation.head(3)
    tensors["targets"] = torch.tensor([70, 3, 70])
    tensors["bias"][70] = -torch.inf
    got, want = implementation.run_both(tensors, upstream_of(3, seed=1, which=which), statistics=True)
    assert got.outputs[0][[0, 2]].tolist() == [-torch.inf] * 2
    for found, expected in zip(got.outputs[:3], want.outputs[:3], strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for name, expected in want.gradients.items():
        assert relative_error(got.gradients[name], expected) <= 1e-5, name


@by_those_in_float32
@pytest.mark.parametrize("place", [3, 4999])
def test_one_logit_far_above_a_target_and_all_others(implementation, place):
    """More tiles than a pass of combine's, the tile that is taken again among the first or the last of them."""
    logits = torch.linspace(0, 1, 5000)
    logits[place] = 50.0
    tensors = {"hidden": torch.ones(1, 1), "weight": logits.unsqueeze(1), "targets": torch.tensor([4500])}
    logprob, entropy, logsumexp, mean_logit = implementation.run_head(tensors, statistics=True).outputs
    every_logprob = logits.double().log_softmax(0)
    assert logprob.item() == pytest.approx(every_logprob[4500].item(), rel=1e-6)
    assert logsumexp.item() == pytest.approx(50.0, rel=1e-6)
    assert mean_logit.item() == pytest.approx(logits.double().mean().item(), rel=1e-5)
    assert entropy.item() == pytest.approx(-(every_logprob.exp() * every_logprob).sum().item(), abs=1e-5)


@by_those_in_float32
def test_the_entropy_of_a_target_far_below_the_others(implementation):
    """Tiles that disagree on the row's reference, and one of nothing but -inf."""
    logits, bias = torch.zeros(200), torch.zeros(200)
    logits[3], logits[70], logits[150] = -400.0, 5.0, 4.0
    bias[64:69] = -torch.inf
    tensors = {
        "hidden": torch.ones(2, 1),
        "weight": logits.unsqueeze(1),
        "bias": bias,
        "targets": torch.tensor([3, 70]),
    }
    got = implementation.run_head(tensors, (None, torch.ones(2)), statistics=True)
    exact = logits.double() + bias
    p = exact.softmax(0)
    entropy = torch.special.entr(p).sum()
    assert got.outputs[1].tolist() == pytest.approx([entropy.item()] * 2, rel=1e-5)
    assert got.outputs[2].tolist() == pytest.approx([exact.logsumexp(0).item()] * 2, rel=1e-6)
    assert got.outputs[3].tolist() == [-torch.inf] * 2
    slopes = -2 * torch.where(p > 0, p * (p.log() + entropy), 0.0)
    assert relative_error(got.gradients["weight"].squeeze(1), slopes) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    """Against float64 on the same rounded inputs: logits never rounded, gradients once."""
    tensors = head_tensors(40, width=32, vocabulary=100, seed=4, logit_limit=20.0, with_bias=True)
    tensors = {name: value if name == "targets" else value.to(dtype) for name, value in tensors.items()}
    with exact_logits():
        got = run_head(linear_logprob, tensors, upstream_of(40), block_rows=16, statistics=True)
    want = run_head(reference.linear_logprob, tensors, upstream_of(40), torch.float64, statistics=True)
    rounding = rounding_of(tensors, upstream_of(40), torch.float32, {})
    assert_equal(got, want, value=1e-5, gradient=torch.finfo(dtype).eps / 2 + 1e-4, rounding=rounding)


@by_those_on_the_cpu
def test_bfloat16_products(implementation):
    """Logits rounded to 8 bits, half a step each way; the statistics are means over many of them."""
    tensors = head_tensors(40, width=32, vocabulary=3001, seed=4, logit_limit=8.0)
    tensors = {name: value if name in ("targets", "bias") else value.bfloat16() for name, value in tensors.items()}
    got, want = implementation.run_both(tensors, upstream_of(40), statistics=True)
    for found, expected in zip(got.outputs, want.outputs, strict=True):
        assert (found - expected).abs().max() <= 0.02
    for name, expected in want.gradients.items():
        assert norm_error(got.gradients[name], expected) <= 0.02, name


def test_one_more_output_and_the_same_gradient():
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2)
    head = tensors["hidden"].float().requires_grad_(), tensors["weight"].float(), tensors["targets"]
    plain = linear_logprob(*head)
    logprob, statistics = linear_logprob(*head, statistics=True)
    torch.testing.assert_close(plain, logprob, rtol=1e-6, atol=0)  # a sweep with more sums may round otherwise
    assert isinstance(statistics, TokenStatistics) and all(values.shape == (9,) for values in statistics)
    (alone,) = torch.autograd.grad(plain.sum(), head[0], retain_graph=True)
    (beside,) = torch.autograd.grad(logprob.sum(), head[0])
    assert torch.equal(alone, beside)


def test_what_carries_gradient():
    tensors = head_tensors(3, width=4, vocabulary=12, seed=2)
    hidden = tensors["hidden"].requires_grad_()
    _, statistics = linear_logprob(hidden, tensors["weight"], tensors["targets"], statistics=True)
    assert statistics.entropy.requires_grad and statistics.logsumexp.requires_grad
    assert not statistics.mean_logit.requires_grad
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(statistics.entropy.sum(), hidden, create_graph=True)


def test_self_certainty_of_the_statistics():
    """KL(uniform || p), Intuitor's reward (arXiv 2505.19590), from logsumexp and mean logit."""
    tensors = head_tensors(9, width=4, vocabulary=50, seed=2, logit_limit=10.0)
    head = tensors["hidden"], tensors["weight"], tensors["targets"]
    statistics = linear_logprob(*head, statistics=True)[1]
    every_logprob = torch.log_softmax(head[0] @ head[1].t(), dim=1)
    uniform = torch.full_like(every_logprob, 1 / 50)
    expected = (uniform * (uniform.log() - every_logprob)).sum(dim=1)
    torch.testing.assert_close(statistics.logsumexp - statistics.mean_logit - math.log(50), expected)


@by_those_in_float32
@pytest.mark.parametrize("block_rows", [None, 40])
@pytest.mark.parametrize("needs", [GRADIENTS, ()])
def test_flow_loss_reports_them(implementation, block_rows, needs):
    """With and without gradients, also of a sequence longer than a block; the rest stays as it is.

    But for a last bit on a CPU: a compiler chooses anew for each sweep which product and sum it rounds as one.
    """
    problem = implementation.problem([30, 0, 5, 60], temperature=0.7)
    found = []

    def op(*tensors, **options):
        result, statistics = flow_loss(*tensors, **options, statistics=True)
        found.append(statistics)
        return result

    got = implementation.run(problem, op=op, needs=needs, block_rows=block_rows)
    within = implementation.beside_statistics
    assert_matches(
        got, implementation.run(problem, needs=needs, block_rows=block_rows), forward=within, gradient=within
    )
    exact = problem.cast(torch.float64).tensors
    head = {name: exact[name] for name in (*HEAD, "targets")}
    _, expected = reference.linear_logprob(**head, temperature=0.7, statistics=True)
    for name, values, wanted in zip(TokenStatistics._fields, found[0], expected, strict=True):
        assert not values.requires_grad
        assert relative_error(values.cpu(), wanted) <= 1e-5, name


def test_the_reference_reports_those_of_linear_logprob():
    problem = make_problem([3, 0, 9, 1])
    tensors = problem.tensors
    head = {name: tensors[name] for name in (*HEAD, "targets")}
    _, found = reference.flow_loss(cu_seqlens=problem.cu_seqlens, **tensors, **problem.options, statistics=True)
    _, expected = reference.linear_logprob(**head, statistics=True)
    assert all(map(torch.equal, found, expected))


def test_the_cuda_kernels_refuse_by_name(monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", "cuda")
    tensors = head_tensors(3, width=4, vocabulary=12, seed=2)
    with pytest.raises(RuntimeError, match=r"FASTFLOW_KERNELS=cuda cannot serve this call: .*no statistics; unset it"):
        linear_logprob(tensors["hidden"], tensors["weight"], tensors["targets"], statistics=True)
    with pytest.raises(RuntimeError, match="no statistics"):
        explain(tensors["hidden"], tensors["weight"], statistics=True)


@by_those_in_float32
def test_statistics_leave_the_choice_as_it_is(implementation):
    inputs = [torch.zeros(rows, 4, device=implementation.device) for rows in (2, 3)]
    assert explain(*inputs, statistics=True) == explain(*inputs)
