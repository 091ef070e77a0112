"""Entropy, logsumexp and mean logit of each row, and their gradients, against float64 autograd of the reference."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from eager_head import exact_logits
from fastflow_kernels import TokenStatistics, explain, flow_loss, linear_logprob, reference, torch_projector
from fastflow_kernels.cpu import native
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.tilt import Tilt
from kernel_problems import (
    ORACLE_ROUNDING,
    assert_matches,
    gradients_of_peaked_rows,
    head_tensors,
    largest,
    make_problem,
    relative_error,
)

HEAD = ("hidden", "weight", "bias")
needs_native = pytest.mark.skipif(native.library() is None, reason=f"needs the native library: {native.why_not()}")
on_the_cpu = pytest.mark.parametrize("implementation", ["torch", pytest.param("native", marks=needs_native)])


def run(op, tensors, upstream, dtype, **options):
    """Log-probs and statistics, and the gradients of their products with `upstream`, None for one without."""
    leaves = {name: tensors[name].detach().to(dtype).requires_grad_() for name in HEAD if tensors.get(name) is not None}
    logprob, statistics = op(**leaves, targets=tensors["targets"], statistics=True, **options)
    outputs = (logprob, statistics.entropy, statistics.logsumexp)
    pairs = [(output, weight) for output, weight in zip(outputs, upstream, strict=True) if weight is not None]
    torch.autograd.backward([pair[0] for pair in pairs], [weight.to(output) for output, weight in pairs])
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return (logprob.detach(), *(values.detach() for values in statistics)), gradients


def upstream_of(row_count: int, seed: int, which=(True, True, True)):
    values = torch.randn(3, row_count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [row if is_there else None for row, is_there in zip(values, which, strict=True)]


def rounding_of(tensors, upstream, dtype, options) -> tuple[float, dict[str, float]]:
    """What log-probs of the tokens beside the likeliest lose: of an entropy near 0, and of gradients that cancel.

    Two roundings of the largest logit, in any probability; a gradient sums that over the rows.
    """
    logits = tensors["hidden"].double() @ tensors["weight"].double().t()
    epsilon = 2 * torch.finfo(dtype).eps * (1 + largest(logits) / options.get("temperature", 1.0))
    of_rows = epsilon * sum(float(weight.abs().sum()) for weight in upstream if weight is not None)
    temperature = min(1.0, options.get("temperature", 1.0))
    sizes = {"hidden": largest(tensors["weight"]), "weight": largest(tensors["hidden"]), "bias": 1.0}
    return epsilon, {name: of_rows * size / temperature for name, size in sizes.items()}


def assert_equal(got, want, value: float, gradient: float, rounding) -> None:
    of_entropy, of_gradients = rounding
    for name, found, expected in zip(("logprob", *TokenStatistics._fields), got[0], want[0], strict=True):
        assert found.shape == expected.shape
        allowed = value * largest(expected) + (of_entropy if name == "entropy" else 0.0) + ORACLE_ROUNDING
        assert largest(found.double() - expected) <= allowed, name
    assert got[1].keys() == want[1].keys()
    for name, expected in want[1].items():
        error = largest(got[1][name].double() - expected)
        assert error <= gradient * largest(expected) + of_gradients[name], f"gradient of {name}"


@st.composite
def calls(draw):
    """(tensors, upstream gradients, options)"""
    softcap = draw(st.sampled_from([None, None, 5.0, 30.0]))
    vocabulary, padding = draw(st.integers(1, 40)), draw(st.sampled_from([0, 0, 3]))
    tensors = head_tensors(
        draw(st.integers(0, 20)),
        width=draw(st.integers(1, 9)),
        vocabulary=vocabulary + padding,
        seed=draw(st.integers(0, 10_000)),
        logit_limit=min(draw(st.sampled_from([0.5, 10.0, 80.0])), 3 * (softcap or math.inf)),
        with_bias=draw(st.booleans()),
    )
    tensors["targets"] %= vocabulary
    options = {"temperature": draw(st.sampled_from([1.0, 0.7, 3.0])), "softcap": softcap, "vocabulary": vocabulary}
    which = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    return tensors, upstream_of(len(tensors["targets"]), draw(st.integers(0, 10_000)), which), options


@on_the_cpu
@settings(deadline=None, max_examples=150)
@given(call=calls(), block_rows=st.sampled_from([1, 3, None]), panel_bytes=st.sampled_from([50, 2**20]))
def test_float32_equals_the_reference(implementation, call, block_rows, panel_bytes):
    tensors, upstream, options = call
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFLOW_KERNELS", implementation)
        patch.setattr(torch_projector, "KEPT_PANEL_BYTES", panel_bytes)
        patch.setattr(torch_projector, "PASSING_PANEL_BYTES", panel_bytes)
        got = run(linear_logprob, tensors, upstream, torch.float32, **options, block_rows=block_rows)
    want = run(reference.linear_logprob, tensors, upstream, torch.float64, **options)
    assert all(values.dtype == torch.float32 for values in got[0])
    assert (got[0][1] >= 0).all()
    rounding = rounding_of(tensors, upstream, torch.float32, options)
    assert_equal(got, want, value=1e-5, gradient=1e-4, rounding=rounding)


@settings(deadline=None, max_examples=60)
@given(call=calls(), block_rows=st.sampled_from([1, 3, None]))
def test_float64_stays_float64(call, block_rows):
    tensors, upstream, options = call
    got = run(linear_logprob, tensors, upstream, torch.float64, **options, block_rows=block_rows)
    assert all(values.dtype == torch.float64 for values in got[0])
    want = run(reference.linear_logprob, tensors, upstream, torch.float64, **options)
    rounding = rounding_of(tensors, upstream, torch.float64, options)
    assert_equal(got, want, value=1e-11, gradient=1e-11, rounding=rounding)


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


@on_the_cpu
@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_a_nearly_certain_token_keeps_the_digits_of_its_entropy(implementation, gap, monkeypatch):
    """Entropies down to 1e-24, and gradients as small, relative to themselves."""
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    tensors = {"hidden": torch.ones(1, 1).double(), "targets": torch.tensor([1]), "bias": None}
    tensors["weight"] = torch.tensor([[0.0], [gap], [-3.0]]).double()
    weight, others = tensors["weight"][:, 0], torch.tensor([0, 2])
    below = weight[others] - gap
    total = 1 + below.exp().sum()
    p = below.exp() / total
    entropy = torch.log1p(below.exp().sum()) - (p * below).sum()
    got = run(linear_logprob, tensors, (None, torch.ones(1), None), torch.float32)
    assert got[0][1].item() == pytest.approx(entropy.item(), rel=1e-6, abs=0)
    slopes = -p * (below - total.log() + entropy)
    torch.testing.assert_close(got[1]["weight"][others, 0].double(), slopes, rtol=2e-6, atol=0)
    assert got[1]["weight"][1].item() == pytest.approx(-slopes.sum().item(), rel=2e-6, abs=0)


@on_the_cpu
def test_an_unlikely_target_takes_no_digits_of_a_peaked_rows_entropy(implementation, monkeypatch):
    """The gradient of each row, some 1e-3, within a hundredth of the rounding of its target's log-prob, 4e-6."""
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    got, want = gradients_of_peaked_rows(linear_logprob), gradients_of_peaked_rows(reference.linear_logprob)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)


@on_the_cpu
def test_logits_of_minus_infinity_have_no_share(implementation, monkeypatch):
    """A whole panel of them, too; the mean logit is -inf by its definition."""
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    monkeypatch.setattr(torch_projector, "KEPT_PANEL_BYTES", 3 * 4 * 4)
    monkeypatch.setattr(torch_projector, "PASSING_PANEL_BYTES", 3 * 4 * 4)
    tensors = head_tensors(3, width=5, vocabulary=20, seed=0, with_bias=True)
    tensors["targets"] = torch.tensor([9, 10, 11])
    upstream = upstream_of(3, seed=0)
    tensors["bias"][:8] = -torch.inf
    got = run(linear_logprob, tensors, upstream, torch.float32)
    alive = {**tensors, "targets": tensors["targets"] - 8, "weight": tensors["weight"][8:], "bias": tensors["bias"][8:]}
    want = run(reference.linear_logprob, alive, upstream, torch.float64)
    for found, expected in zip(got[0][:3], want[0][:3], strict=True):
        assert relative_error(found, expected) <= 1e-5
    assert (got[0][3] == -torch.inf).all()
    for name, expected in want[1].items():
        gradient = got[1][name] if name == "hidden" else got[1][name][8:]
        assert relative_error(gradient, expected) <= 1e-4, name
    full = run(reference.linear_logprob, tensors, upstream, torch.float64)[0]
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(got[0][:3], full[:3], strict=True))


@pytest.mark.parametrize("which", [(False, True, False), (False, False, True), (True, True, True)])
@on_the_cpu
def test_the_gradient_where_a_target_cannot_be_drawn(implementation, which, monkeypatch):
    """Entropy and logsumexp do not depend on the target, nor does their gradient."""
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    tensors = head_tensors(3, width=5, vocabulary=20, seed=0, with_bias=True)
    tensors["targets"] = torch.tensor([7, 3, 7])
    tensors["bias"][7] = -torch.inf
    upstream = upstream_of(3, seed=1, which=which)
    got = run(linear_logprob, tensors, upstream, torch.float32)
    want = run(reference.linear_logprob, tensors, upstream, torch.float64)
    for name, expected in want[1].items():
        assert relative_error(got[1][name], expected) <= 1e-5, name


@on_the_cpu
def test_nan_stays_in_its_row(implementation, monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    hidden = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    hidden[1, 2] = torch.nan
    hidden.requires_grad_()
    weight = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    logprob, statistics = linear_logprob(hidden, weight, torch.tensor([9, 10, 11]), statistics=True)
    assert all(values.isnan().tolist() == [False, True, False] for values in (logprob, *statistics))
    statistics.entropy.sum().backward()
    assert hidden.grad.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    """Against float64 on the same rounded inputs: logits never rounded, gradients once."""
    tensors = head_tensors(40, width=32, vocabulary=100, seed=4, logit_limit=20.0, with_bias=True)
    tensors = {name: value if name == "targets" else value.to(dtype) for name, value in tensors.items()}
    upstream = upstream_of(40, seed=0)
    with exact_logits():
        got = run(linear_logprob, tensors, upstream, dtype, block_rows=16)
    want = run(reference.linear_logprob, tensors, upstream, torch.float64)
    rounding = rounding_of(tensors, upstream, torch.float32, {})
    assert_equal(got, want, value=1e-5, gradient=torch.finfo(dtype).eps / 2 + 1e-4, rounding=rounding)


@on_the_cpu
def test_bfloat16_products(implementation, monkeypatch):
    """Logits rounded to 8 bits, half a step each way; the statistics are means over many of them."""
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    tensors = head_tensors(40, width=32, vocabulary=3001, seed=4, logit_limit=8.0)
    tensors = {name: value if name in ("targets", "bias") else value.bfloat16() for name, value in tensors.items()}
    got = run(linear_logprob, tensors, upstream_of(40, seed=0), torch.bfloat16, block_rows=16)
    want = run(reference.linear_logprob, tensors, upstream_of(40, seed=0), torch.float64)
    for found, expected in zip(got[0], want[0], strict=True):
        assert (found - expected).abs().max() <= 0.02
    for name, expected in want[1].items():
        assert (got[1][name].double() - expected).norm() <= 0.02 * expected.norm(), name


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


@on_the_cpu
@pytest.mark.parametrize("block_rows", [None, 4])
@pytest.mark.parametrize("needs", [("hidden", "weight", "bias", "log_z"), ()])
def test_flow_loss_reports_them(implementation, block_rows, needs, monkeypatch):
    """With and without gradients, also of a sequence longer than a block; the rest stays as it is.

    But for a last bit: a compiler chooses anew for each sweep which product and sum it rounds as one.
    """
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    problem = make_problem([3, 0, 9, 1], width=8, vocabulary=21, with_bias=True, temperature=0.7).cast(torch.float32)
    found = []

    def op(*tensors, **options):
        result, statistics = flow_loss(*tensors, **options, statistics=True)
        found.append(statistics)
        return result

    result, gradients = problem.run(op=op, needs=needs, block_rows=block_rows)
    plain, plain_gradients = problem.run(needs=needs, block_rows=block_rows)
    assert_matches((result, gradients), (plain, plain_gradients), forward=1e-6, gradient=1e-6)
    (statistics,) = found
    exact = {name: value.double() if value.is_floating_point() else value for name, value in problem.tensors.items()}
    tensors = [exact.pop(name) for name in ("hidden", "weight", "targets")]
    _, expected = reference.flow_loss(*tensors, problem.cu_seqlens, **exact, **problem.options, statistics=True)
    for name, values, wanted in zip(TokenStatistics._fields, statistics, expected, strict=True):
        assert not values.requires_grad
        assert relative_error(values, wanted) <= 1e-5, name


def test_the_cuda_kernels_refuse_by_name(monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", "cuda")
    tensors = head_tensors(3, width=4, vocabulary=12, seed=2)
    with pytest.raises(RuntimeError, match=r"FASTFLOW_KERNELS=cuda cannot serve this call: .*no statistics; unset it"):
        linear_logprob(tensors["hidden"], tensors["weight"], tensors["targets"], statistics=True)
    with pytest.raises(RuntimeError, match="no statistics"):
        explain(tensors["hidden"], tensors["weight"], statistics=True)


@on_the_cpu
def test_statistics_leave_the_choice_as_it_is(implementation, monkeypatch):
    monkeypatch.setenv("FASTFLOW_KERNELS", implementation)
    inputs = torch.zeros(2, 4), torch.zeros(3, 4)
    assert explain(*inputs, statistics=True) == explain(*inputs)


def test_moments_of_columns_measured_apart():
    """As the statistics of two shards are merged, one of which has nothing but -inf."""
    logits = torch.tensor([[1.0, 4.0, -2.0, 3.0], [0.5, -60.0, -torch.inf, -torch.inf]]).double()
    target_logit = logits[:, 0]

    class Shard:
        """Both halves at once: what one rank would send is added to what the other has."""

        def __init__(self, other: RowStatistics):
            self.other = other

        def gathered(self, values):
            return torch.stack([values, torch.stack([self.other.reference, self.other.sum_of_others])])

        def sum_(self, values):
            reference = torch.maximum(own.reference, self.other.reference)
            ratio = self.other.ratio_to(reference)
            shift = (self.other.reference - reference).clamp(min=-1e300)
            moments = self.other.moments.rebased(self.other.sum_of_others, shift, ratio)
            counts = torch.full_like(ratio, moments.columns)
            return values + torch.stack([moments.weighted, moments.logit_sum, counts])

    own, other = half_of(logits, slice(0, 2), target_logit), half_of(logits, slice(2, 4), target_logit)
    statistics = own.merged(Shard(other)).token_statistics()
    p = logits.softmax(dim=1)
    torch.testing.assert_close(statistics.entropy, torch.special.entr(p).sum(dim=1))
    torch.testing.assert_close(statistics.logsumexp, logits.logsumexp(dim=1))
    torch.testing.assert_close(statistics.mean_logit, logits.mean(dim=1))


def half_of(logits: torch.Tensor, part: slice, target_logit: torch.Tensor) -> RowStatistics:
    """Of some columns, by row_sweeps.py; the target is column 0."""
    from fastflow_kernels import row_sweeps
    from fastflow_kernels.moments import Moments

    panel = logits[:, part].clone()
    reference = panel.amax(dim=1)
    columns = torch.full((2,), -part.start)
    options = {"softcap": None, "scale": 1.0, "reference": reference.clamp(min=-1e300), "columns": columns}
    others, _, *sums = row_sweeps.row_exponentials_(panel, None, **options, store=False, with_moments=True)
    return RowStatistics(target_logit, reference, others, moments=Moments(*sums, 2))


def test_a_tilt_without_statistics_is_the_plain_direction():
    """Upstream gradients of the log-probs alone, whichever way they go."""
    tensors = head_tensors(9, width=4, vocabulary=12, seed=2, with_bias=True)
    head = [tensors[name] for name in HEAD]
    outcomes = []
    for extra in (None, torch.zeros(9).double()):
        leaves = [tensor.clone().requires_grad_() for tensor in head]
        logprob, statistics = linear_logprob(*leaves[:2], tensors["targets"], bias=leaves[2], statistics=True)
        loss = logprob @ torch.linspace(-1, 1, 9).double()
        (loss if extra is None else loss + statistics.entropy @ extra).backward()
        outcomes.append([leaf.grad for leaf in leaves])
    for plain, tilted in zip(*outcomes, strict=True):
        torch.testing.assert_close(plain, tilted, rtol=1e-12, atol=1e-14)


def test_a_tilt_knows_the_sum_for_any_reference():
    logits = torch.tensor([[1.0, 4.0, -2.0, 3.0]]).double()
    every_logprob = logits.log_softmax(dim=1)
    entropy = -(every_logprob.exp() * every_logprob).sum(dim=1)
    zero = torch.zeros(1).double()
    tilt = Tilt(zero, zero + 1, zero, every_logprob[:, 2], entropy, logits.logsumexp(dim=1))
    statistics = tilt.statistics(logits[:, 2], scale=1.0)
    moved = statistics._replace(reference=statistics.reference + 0.5)
    moved = moved._replace(sum_of_others=statistics.sum_of_others * math.exp(-0.5))
    for found in (statistics, moved):
        exponents = logits - found.reference
        constant, slope = tilt.affine(found)
        direction = exponents.exp() * (constant + slope * exponents)
        direction[:, 2] = tilt.target_entry(found)
        torch.testing.assert_close(direction * found.factor(), -every_logprob.exp() * (every_logprob + entropy))
