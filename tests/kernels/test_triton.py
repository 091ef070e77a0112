"""The Triton implementations against float64: interpreted on the CPU, compiled on a GPU."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from packaging.version import Version

from fastflow_kernels import explain, flow_loss, linear_logprob, logprob_blocks, reference, sequence_terms
from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.implementation import choose
from kernel_problems import (
    assert_gradients_match,
    assert_matches,
    gradients_of_peaked_rows,
    head_tensors,
    largest,
    make_problem,
    on_cpu,
    on_device,
    relative_error,
)

triton = pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

COMPILED = torch.cuda.is_available()
if not COMPILED and Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
    pytest.skip("the interpreter of triton 3.6 needs numpy < 2.4: pip install 'numpy<2.4'", allow_module_level=True)
DEVICE = torch.device("cuda" if COMPILED else "cpu")
pytestmark = [pytest.mark.gpu] if COMPILED else []
IMPLEMENTATIONS = pytest.mark.parametrize("name", ["rows", "fused"])
# Tiles are 64 wide in the interpreter: below, at and above one tile and two, and no multiple of anything. Compiled,
# each width is another kernel, so there are few.
SIZES = st.sampled_from([17, 64, 130] if COMPILED else [1, 2, 17, 63, 64, 65, 130])
TEMPERATURES = [1.0, 0.7, 3.0]
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from(TEMPERATURES),
        "softcap": st.sampled_from([None, 5.0, 30.0]),
    }
)


@pytest.fixture
def force(monkeypatch):
    return lambda name: monkeypatch.setenv("FASTFLOW_KERNELS", name)


@pytest.fixture
def implementation(name, force):
    force(name)
    return name


same_environment = settings(
    deadline=None, max_examples=6 if COMPILED else 20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def problems(draw):
    """A sum over many rows has few digits left after subtraction: long sequences come with normalised lengths."""
    is_long = draw(st.booleans())
    lengths = st.sampled_from([0, 1, 70] if is_long else [0, 1, 2, 9])
    return make_problem(
        draw(st.lists(lengths, min_size=1, max_size=3)),
        width=draw(SIZES),
        vocabulary=draw(SIZES),
        seed=draw(st.integers(0, 1000)),
        ratio="token_mean" if is_long else draw(st.sampled_from(["sequence", "token_mean"])),
        length_aware=is_long or draw(st.booleans()),
        logit_limit=draw(st.sampled_from([0.5, 4.0, 12.0])),
        with_bias=draw(st.booleans()),
        temperature=draw(st.sampled_from(TEMPERATURES)),
        softcap=draw(st.sampled_from([None, 5.0])),  # a larger one rounds small logits too much for 1e-5
    )


@IMPLEMENTATIONS
@same_environment
@given(problem=problems(), block_rows=st.sampled_from([None, 16, 50]))
def test_flow_loss(name, implementation, problem, block_rows):
    problem = problem.cast(torch.float32)
    result, gradients = on_cpu(on_device(problem, DEVICE).run(block_rows=block_rows))
    expected, expected_gradients = problem.oracle()
    assert_matches((result, {}), (expected, {}), forward=1e-5, gradient=0.0)
    assert_gradients_match(problem, gradients, expected, expected_gradients)


@IMPLEMENTATIONS
@same_environment
@given(
    row_count=st.sampled_from([0, 1, 3, 66]),
    width=SIZES,
    vocabulary=SIZES,
    seed=st.integers(0, 1000),
    logit_limit=st.sampled_from([0.5, 10.0, 80.0, 300.0]),
    with_bias=st.booleans(),
    options=OPTIONS,
    padding=st.sampled_from([0, 3]),
)
def test_linear_logprob(
    name, implementation, row_count, width, vocabulary, seed, logit_limit, with_bias, options, padding
):
    """Up to logits so large that a target's probability underflows, where tiles disagree on a row's reference.

    A saturated soft-cap has a slope of 1 - tanh^2, of which float32 keeps 7 digits of the 1, not of the slope.
    """
    logit_limit = min(logit_limit, 3 * (options["softcap"] or torch.inf))
    tensors = head_tensors(row_count, width, vocabulary + padding, seed, logit_limit, with_bias)
    tensors["targets"] %= vocabulary
    upstream = torch.randn(row_count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    options = options | {"vocabulary": vocabulary}

    def run(op, dtype, device):
        leaves = {
            key: value.to(device, dtype).requires_grad_() if value.is_floating_point() else value.to(device)
            for key, value in tensors.items()
            if value is not None
        }
        logprob = op(**leaves, **options)
        logprob.backward(upstream.to(logprob))
        return logprob.detach().cpu(), {key: leaf.grad.cpu() for key, leaf in leaves.items() if key != "targets"}

    got, want = run(linear_logprob, torch.float32, DEVICE), run(reference.linear_logprob, torch.float64, "cpu")
    assert (got[0] <= 0).all()
    assert relative_error(got[0], want[0]) <= 1e-5
    for key, gradient in want[1].items():
        assert relative_error(got[1][key], gradient) <= 1e-4, key


@IMPLEMENTATIONS
@same_environment
@given(
    row_count=st.sampled_from([0, 1, 3, 66]),
    width=SIZES,
    vocabulary=SIZES,
    seed=st.integers(0, 1000),
    logit_limit=st.sampled_from([0.5, 10.0, 80.0]),
    with_bias=st.booleans(),
    options=OPTIONS,
    padding=st.sampled_from([0, 3]),
    upstream=st.sampled_from([(1, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1)]),
)
def test_token_statistics(
    name, implementation, row_count, width, vocabulary, seed, logit_limit, with_bias, options, padding, upstream
):
    """upstream: which of log-prob, entropy and logsumexp have a gradient.

    float32 keeps what two roundings of the largest logit leave of a probability: an entropy near 0 is no better.
    """
    logit_limit = min(logit_limit, 3 * (options["softcap"] or torch.inf))
    tensors = head_tensors(row_count, width, vocabulary + padding, seed, logit_limit, with_bias)
    tensors["targets"] %= vocabulary
    options = options | {"vocabulary": vocabulary}
    weights = torch.randn(3, row_count, generator=torch.Generator().manual_seed(seed)) * torch.tensor([upstream]).t()

    def run(op, dtype, device):
        leaves = {
            key: value.to(device, dtype).requires_grad_() if value.is_floating_point() else value.to(device)
            for key, value in tensors.items()
            if value is not None
        }
        logprob, statistics = op(**leaves, **options, statistics=True)
        outputs = (logprob, statistics.entropy, statistics.logsumexp)
        used = [pair for pair, is_on in zip(zip(outputs, weights, strict=True), upstream, strict=True) if is_on]
        sum((output * weight.to(output)).sum() for output, weight in used).backward()
        gradients = {key: leaf.grad.cpu() for key, leaf in leaves.items() if key != "targets"}
        return [values.detach().cpu() for values in (logprob, *statistics)], gradients

    got, want = run(linear_logprob, torch.float32, DEVICE), run(reference.linear_logprob, torch.float64, "cpu")
    assert (got[0][1] >= 0).all()
    epsilon = 4e-7 * (1 + logit_limit / options["temperature"])
    for value, expected in zip(got[0], want[0], strict=True):
        assert value.shape == expected.shape
        assert largest(value.double() - expected) <= 1e-5 * largest(expected) + epsilon
    of_rows = epsilon * float(weights.abs().sum()) / min(1.0, options["temperature"])
    sizes = {"hidden": largest(tensors["weight"]), "weight": largest(tensors["hidden"]), "bias": 1.0}
    for key, gradient in want[1].items():
        assert largest(got[1][key].double() - gradient) <= 1e-4 * largest(gradient) + of_rows * sizes[key], key


@IMPLEMENTATIONS
@pytest.mark.parametrize("block_rows", [None, 40])
def test_flow_loss_reports_statistics(name, implementation, block_rows):
    problem = on_device(make_problem([30, 5, 60], width=9, vocabulary=150, with_bias=True).cast(torch.float32), DEVICE)
    tensors = dict(problem.tensors)
    head = [tensors.pop(key) for key in ("hidden", "weight", "targets")]
    expected = reference.linear_logprob(*(part.cpu() for part in head), bias=tensors["bias"].cpu(), statistics=True)[1]
    for needs in (True, False):
        leaf = head[0].detach().requires_grad_(needs)
        options = {**tensors, **problem.options, "block_rows": block_rows, "statistics": True}
        result, found = flow_loss(leaf, *head[1:], problem.cu_seqlens, **options)
        for value, wanted in zip(found, expected, strict=True):
            assert relative_error(value.cpu(), wanted) <= 1e-5
        plain = flow_loss(leaf, *head[1:], problem.cu_seqlens, **options | {"statistics": False})
        assert all(map(torch.equal, result, plain))


@IMPLEMENTATIONS
@pytest.mark.parametrize("place", [3, 4999])
def test_one_logit_far_above_a_target_and_all_others(name, implementation, place):
    """More tiles than a pass of combine's, the tile that is taken again among the first or the last of them."""
    logits = torch.linspace(0, 1, 5000)
    logits[place] = 50.0
    head = torch.ones(1, 1, device=DEVICE), logits.unsqueeze(1).to(DEVICE), torch.tensor([4500], device=DEVICE)
    logprob, statistics = linear_logprob(*head, statistics=True)
    every_logprob = logits.double().log_softmax(0)
    assert logprob.item() == pytest.approx(every_logprob[4500].item(), rel=1e-6)
    assert statistics.logsumexp.item() == pytest.approx(50.0, rel=1e-6)
    assert statistics.mean_logit.item() == pytest.approx(logits.double().mean().item(), rel=1e-5)
    assert statistics.entropy.item() == pytest.approx(-(every_logprob.exp() * every_logprob).sum().item(), abs=1e-5)


@IMPLEMENTATIONS
def test_an_unlikely_target_takes_no_digits_of_a_peaked_rows_entropy(name, implementation):
    got, want = gradients_of_peaked_rows(linear_logprob, DEVICE), gradients_of_peaked_rows(reference.linear_logprob)
    torch.testing.assert_close(got.double().cpu(), want, rtol=1e-4, atol=0)


@IMPLEMENTATIONS
def test_the_entropy_of_a_target_far_below_the_others(name, implementation):
    """Tiles that disagree on the row's reference, and one of nothing but -inf."""
    logits = torch.zeros(200)
    logits[3], logits[70], logits[150] = -400.0, 5.0, 4.0
    bias = torch.zeros(200)
    bias[64:69] = -torch.inf
    weight = logits.unsqueeze(1).to(DEVICE).requires_grad_()
    head = torch.ones(2, 1, device=DEVICE), weight, torch.tensor([3, 70], device=DEVICE)
    _, statistics = linear_logprob(*head, bias=bias.to(DEVICE), statistics=True)
    exact = (logits.double() + bias).requires_grad_()
    entropy = torch.special.entr(exact.softmax(0)).sum()
    assert statistics.entropy.tolist() == pytest.approx([entropy.item()] * 2, rel=1e-5)
    assert statistics.logsumexp.tolist() == pytest.approx([exact.logsumexp(0).item()] * 2, rel=1e-6)
    assert statistics.mean_logit.tolist() == [-torch.inf] * 2
    statistics.entropy.sum().backward()
    p = exact.detach().softmax(0)
    slopes = -2 * torch.where(p > 0, p * (p.log() + entropy.detach()), 0.0)
    assert relative_error(weight.grad.squeeze(1).cpu(), slopes) <= 1e-4


@IMPLEMENTATIONS
def test_a_target_that_cannot_be_drawn(name, implementation):
    """Its log-prob is -inf; the gradients are those of the others, which lose what it would gain."""
    tensors = head_tensors(3, 8, 150, 0, 4.0, True)
    tensors["targets"] = torch.tensor([70, 3, 70])
    tensors["bias"][70] = -torch.inf
    leaves = {
        key: value.to(DEVICE, torch.float32).requires_grad_() for key, value in tensors.items() if key != "targets"
    }
    logprob, statistics = linear_logprob(**leaves, targets=tensors["targets"].to(DEVICE), statistics=True)
    exact = {key: value.double() for key, value in tensors.items() if key != "targets"}
    logits = exact["hidden"] @ exact["weight"].T + exact["bias"]
    every = logits.log_softmax(1)
    torch.testing.assert_close(
        logprob.detach().double().cpu(), every.gather(1, tensors["targets"][:, None]).squeeze(1), rtol=1e-5, atol=1e-5
    )
    assert logprob[0].item() == -torch.inf
    torch.testing.assert_close(statistics.logsumexp.detach().double().cpu(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    entropy = torch.special.entr(every.exp()).sum(1)
    torch.testing.assert_close(statistics.entropy.detach().double().cpu(), entropy, rtol=1e-5, atol=1e-5)
    of_logprob = torch.zeros_like(every).scatter_(1, tensors["targets"][:, None], 1.0) - every.exp()
    of_entropy = torch.special.entr(every.exp()) - every.exp() * entropy[:, None]
    for output, slopes in ((logprob, of_logprob), (logprob + statistics.entropy, of_logprob + of_entropy)):
        gradients = torch.autograd.grad(output.sum(), (leaves["hidden"], leaves["weight"]), retain_graph=True)
        assert relative_error(gradients[0].cpu(), slopes @ exact["weight"]) <= 1e-5
        assert relative_error(gradients[1].cpu(), slopes.T @ exact["hidden"]) <= 1e-5


@IMPLEMENTATIONS
def test_a_target_far_below_the_others_is_measured_against_the_largest(name, implementation):
    """exp(400) is no float32: tiles whose logits stand that far above the target's need their own reference."""
    hidden = torch.tensor([[1.0], [1.0]], device=DEVICE, requires_grad=True)
    logits = torch.zeros(200)
    logits[3], logits[70], logits[150] = -400.0, 5.0, 4.0
    weight = logits.unsqueeze(1).to(DEVICE).requires_grad_()
    logprob = linear_logprob(hidden, weight, torch.tensor([3, 70], device=DEVICE))
    exact = torch.log_softmax(logits.double(), 0)
    assert logprob.tolist() == pytest.approx([exact[3].item(), exact[70].item()], rel=1e-6)
    logprob.sum().backward()
    expected = torch.zeros(200, dtype=torch.float64)
    expected[3] += 1
    expected[70] += 1
    expected -= 2 * exact.exp()
    assert relative_error(weight.grad.squeeze(1).cpu(), expected) <= 1e-5


@IMPLEMENTATIONS
def test_sizes_of_real_models(name, implementation):
    """Wider than one slice of the target's dot product, more columns than a chunk of a row, more tiles than a pass."""
    tensors = head_tensors(5, width=1500, vocabulary=9000, seed=0, logit_limit=12.0, with_bias=True)
    exact = {key: tensors[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")}
    leaves = {key: tensors[key].float().to(DEVICE).requires_grad_() for key in exact}
    logprob = linear_logprob(**leaves, targets=tensors["targets"].to(DEVICE))
    expected = reference.linear_logprob(**exact, targets=tensors["targets"])
    assert relative_error(logprob.detach().cpu(), expected.detach()) <= 1e-5
    upstream = torch.linspace(-1, 1, 5)
    logprob.backward(upstream.to(DEVICE))
    expected.backward(upstream.double())
    for key, leaf in exact.items():
        assert relative_error(leaves[key].grad.cpu(), leaf.grad) <= 1e-4, key


def test_bytes_of_an_entry():
    from fastflow_kernels.triton.projectors import FusedProjector, RowsProjector

    types = (torch.float32, torch.bfloat16, torch.float16)
    assert [RowsProjector.entry_bytes(dtype) for dtype in types] == [4, 2, 6]
    assert [FusedProjector.entry_bytes(dtype) for dtype in types] == [4, 2, 2]


@pytest.mark.parametrize("vocabulary", [17, 2048, 4999])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "temperature": 0.7}], ids=["plain", "all"])
def test_narrow_logits_give_way_to_their_exponentials(vocabulary, options):
    """The target's logit is given. In float16, of which the kernel knows no more than of bfloat16."""
    from fastflow_kernels.triton.row import row_pass

    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(3, vocabulary + 8, generator=generator).half().to(DEVICE)
    bias = torch.randn(vocabulary, generator=generator).to(DEVICE)
    logits, between = memory[:, :vocabulary], memory[:, vocabulary:].clone()
    head = Head(torch.empty(vocabulary, 0, device=DEVICE), bias, **options)
    targets = torch.tensor([0, vocabulary - 1, -1], device=DEVICE)
    wide = torch.empty(3, vocabulary, device=DEVICE)
    _, *statistics = row_pass(logits.float(), head, targets, wide)
    given = torch.randn(3, generator=generator).to(DEVICE)
    found, *narrow = row_pass(logits, head, targets, logits, given)
    assert found is given
    torch.testing.assert_close(narrow, statistics, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits, wide.half(), rtol=2**-10, atol=2**-24)
    assert torch.equal(memory[:, vocabulary:], between)


@IMPLEMENTATIONS
def test_small_inputs_need_not_be_dense(name, implementation):
    """The kernels read targets, offsets and the numbers per sequence one after the other."""
    problem = on_device(make_problem([3, 0, 9, 5], width=9, vocabulary=70), DEVICE)
    head = ("hidden", "weight", "bias")
    tensors = {
        key: value.float() if value is not None and key in head else value for key, value in problem.tensors.items()
    }
    strided = {
        key: value if value is None or key in head else torch.stack([value, value * 0 + 1], dim=1)[:, 0]
        for key, value in tensors.items()
    }
    strided["length_scale"] = torch.full((1,), 0.2, dtype=torch.float64, device=DEVICE).expand(4)
    tensors["length_scale"] = strided["length_scale"].clone()
    offsets = torch.stack([problem.cu_seqlens.long(), torch.zeros(5).long()], dim=1)
    dense = flow_loss(cu_seqlens=problem.cu_seqlens, **tensors, **problem.options)
    for place in ("cpu", DEVICE):
        loose = flow_loss(cu_seqlens=offsets.to(place)[:, 0], **strided, **problem.options)
        assert all(torch.equal(got, want) for got, want in zip(loose, dense, strict=True))


@IMPLEMENTATIONS
def test_a_target_that_no_column_has_makes_its_logprob_nan(name, implementation):
    """Where the door does not ask, since asking would wait for the device."""
    hidden, weight = torch.ones(4, 3, device=DEVICE), torch.ones(70, 3, device=DEVICE)
    head = Head.of(factors_of(weight, torch.float32, vocabulary=60), None)
    targets = torch.tensor([-100, 70, 65, 59], device=DEVICE)
    logprob = logprob_blocks.logprobs(hidden, targets, head, choose(hidden.device, torch.float32), None)
    assert logprob.isnan().tolist() == [True, True, True, False]


@IMPLEMENTATIONS
def test_nan_reaches_the_result(name, implementation):
    hidden = torch.ones(3, 4, device=DEVICE)
    hidden[1, 2] = torch.nan
    logprob = linear_logprob(hidden, torch.ones(70, 4, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE))
    assert logprob.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("ratio", ["sequence", "token_mean"])
def test_the_sequence_kernel_equals_the_torch_function(ratio):
    """Empty sequences, single tokens, one of 100,000, and one that goes over two blocks."""
    from fastflow_kernels.triton import sequence

    lengths = torch.tensor([1, 0, 100_000, 1, 7, 30])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    generator = torch.Generator().manual_seed(0)
    token_logprob = -torch.rand(int(offsets[-1]), generator=generator)
    logprob = torch.stack([part.double().sum() for part in token_logprob.split(lengths.tolist())])
    row_factor = torch.randn(len(token_logprob), generator=generator)
    inputs = sequence_terms.SequenceInputs(
        log_z=torch.randn(6, generator=generator).double(),
        log_target=torch.randn(6, generator=generator).double(),
        length_scale=1.0 / lengths.double(),
        behaviour_logprob=logprob - torch.linspace(-0.7, 0.7, 6) * (lengths if ratio == "token_mean" else 1),
        clip_low=0.2,
        clip_high=0.28,
        ratio=ratio,
        normaliser=6.0,
    )
    blocks = [*sequence_blocks(offsets[:-1].tolist(), 60_000), *sequence_blocks(offsets[-2:].tolist(), 20)]
    blocks[-2:] = [block._replace(sequence_start=5, sequence_stop=6) for block in blocks[-2:]]
    assert any(block.is_part for block in blocks) and not all(block.is_part for block in blocks)

    outcomes = []
    for device, settle in (("cpu", sequence_terms.settle_sequences_), (DEVICE, sequence.settle_sequences_)):
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in vars(inputs).items()
        }
        there = sequence_terms.SequenceInputs(**moved)
        terms, factor = sequence_terms.SequenceTerms.zeros(like=there.log_z), row_factor.to(device, copy=True)
        for block in blocks:
            settle(terms, there, offsets.to(device), block, token_logprob[block.rows].to(device), factor[block.rows])
        outcomes.append([value.cpu() for value in (*terms, factor)])
    for got, want in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-7, atol=0)


@IMPLEMENTATIONS
def test_a_frozen_head_gets_no_gradient(name, implementation):
    problem = on_device(make_problem([30, 5, 60], width=9, vocabulary=70).cast(torch.float32), DEVICE)
    got = on_cpu(problem.run(needs=("hidden", "log_z"), block_rows=40))
    assert set(got[1]) == {"hidden", "log_z"}
    assert_matches(got, problem.oracle(needs=("hidden", "log_z")), forward=1e-5, gradient=1e-4)


def test_what_is_forced_is_taken_or_refused(force):
    hidden, weight = torch.zeros(2, 4, device=DEVICE), torch.zeros(3, 4, device=DEVICE)
    force("fused")
    assert explain(hidden, weight) == "fused: FASTFLOW_KERNELS asks for it"
    with pytest.raises(RuntimeError, match=r"cannot serve this call: .*float64.*; unset it"):
        explain(hidden.double(), weight.double())
    force("tritn")
    with pytest.raises(ValueError, match="must be one of torch, native, rows, cuda, fused, hopper, got 'tritn'"):
        explain(hidden, weight)
