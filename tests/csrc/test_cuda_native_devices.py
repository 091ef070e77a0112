"""The CUDA library on a GPU: its row pass against float64 there, and the ops with it against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from fastflow_kernels import explain, linear_logprob
from fastflow_kernels.cuda import native as cuda_native
from fastflow_kernels.head import Head
from kernel_problems import assert_matches, make_problem, on_cpu, on_device

pytestmark = pytest.mark.gpu
LENGTHS = [40, 1, 0, 300, 7, 90]
# One block a row, clusters of 2 and 8, one block to a multiprocessor, a row that streams; odd ones are not aligned.
VOCABULARIES = [1, 515, 32_000, 151_936, 262_144, 262_147, 470_001]


@pytest.fixture
def row_pass():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    if reason := cuda_native.why_not():
        pytest.skip(reason)
    return cuda_native.row_pass()


@pytest.fixture
def cuda(row_pass, monkeypatch) -> torch.device:
    """Every op takes the library."""
    monkeypatch.setenv("FASTFLOW_KERNELS", "cuda")
    return torch.device("cuda")


def make_rows(vocabulary: int, **options) -> tuple[torch.Tensor, torch.Tensor, Head]:
    """Products (5, V), targets (5,) of which the last two are no columns, and a head with a bias."""
    generator = torch.Generator("cuda").manual_seed(0)
    products = 4 * torch.randn(5, vocabulary, device="cuda", generator=generator)
    bias = torch.randn(vocabulary, device="cuda", generator=generator)
    targets = torch.tensor([0, vocabulary - 1, vocabulary // 2, -1, vocabulary], device="cuda")
    return products, targets, Head(torch.empty(vocabulary, 0, device="cuda"), bias, **options)


def exact(products: torch.Tensor, targets: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    """target_logit, reference, total and exponentials, in float64."""
    logits, slope = products.double() + head.bias.double(), 1.0
    if head.softcap is not None:
        fraction = (logits / head.softcap).tanh()
        logits, slope = head.softcap * fraction, 1 - fraction.square()
    logits = logits / head.temperature
    is_here = head.holds(targets)
    target_logit = logits.gather(1, torch.where(is_here, targets, 0).unsqueeze(1)).squeeze(1)
    reference = logits.amax(dim=1)
    exponentials = (logits - reference.unsqueeze(1)).exp()
    exponentials[is_here, targets[is_here]] = 0.0
    target_logit = torch.where(is_here, target_logit, head.absent_logit)
    return target_logit, reference, exponentials.sum(dim=1), exponentials * slope


def assert_close(got, want, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(
    ("product", "store"),
    [(torch.float32, store) for store in ("in place", torch.float32, torch.bfloat16, None)]
    + [(torch.bfloat16, store) for store in ("in place", torch.bfloat16, None)],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "temperature": 0.7}], ids=["plain", "all"])
def test_row_pass(row_pass, vocabulary, product, store, options):
    products, targets, head = make_rows(vocabulary, **options)
    products = products.to(product)
    *want, want_exponentials = exact(products, targets, head)
    exponentials = (
        products if store == "in place" else None if store is None else torch.empty_like(products, dtype=store)
    )
    got = row_pass(products, head, targets, exponentials)
    for number, expected in zip(got, want, strict=True):
        assert_close(number, expected, rtol=1e-5, atol=1e-5)
    if exponentials is not None:
        rounding = 2**-8 if exponentials.dtype == torch.bfloat16 else 0.0
        assert_close(exponentials, want_exponentials, rtol=2e-5 + rounding, atol=1e-6)


def test_rows_apart_and_rows_off_by_one(row_pass):
    """Entries between rows stay as they are; rows that start anywhere take the way of single entries."""
    products, targets, head = make_rows(4099)
    *_, want = exact(products, targets, head)
    for offset in (0, 1):
        memory = torch.full((5 * 4112 + 1,), 42.0, device="cuda")
        rows = memory[offset : offset + 5 * 4112].view(5, 4112)
        rows[:, :4099] = products
        row_pass(rows[:, :4099], head, targets, rows[:, :4099])
        assert_close(rows[:, :4099], want, rtol=2e-5, atol=1e-6)
        assert (rows[:, 4099:] == 42.0).all()


@pytest.mark.parametrize("vocabulary", [515, 151_936, 470_001])
def test_nan_and_infinities(row_pass, vocabulary):
    products, _, _ = make_rows(vocabulary)
    head = Head(torch.empty(vocabulary, 0, device="cuda"), None)
    products[0, -1] = products[1, 0] = math.nan
    products[2] = -math.inf
    products[2, 1] = 2.0
    products[3] = -math.inf
    targets = torch.zeros(5, dtype=torch.int64, device="cuda")
    target_logit, reference, total = row_pass(products, head, targets, products)
    assert target_logit.isnan().tolist() == [False, True, False, False, False]
    assert total.isnan().tolist() == [True, False, False, False, False]
    assert reference[2:4].tolist() == [2.0, -math.inf] and total[2:4].tolist() == [1.0, 0.0]
    assert (products[:, 0] == 0).all() and products[0].isnan().sum() == 1 and not products[1:].isnan().any()


def test_on_the_current_stream(row_pass):
    """Which waits for a product that is still to come."""
    products, targets, head = make_rows(151_936)
    want = exact(products, targets, head)[2]
    late = torch.zeros_like(products)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(products)
        total = row_pass(late, head, targets, late)[2]
    stream.synchronize()
    assert_close(total, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [{}, {"with_bias": True, "softcap": 20.0, "temperature": 0.7}], ids=["plain", "all"])
def test_flow_loss(cuda, dtype, head):
    problem = make_problem(LENGTHS, width=64, vocabulary=5000, ratio="token_mean", **head).cast(dtype)
    got, want = on_cpu(on_device(problem, cuda).run(block_rows=64)), problem.oracle()
    if dtype == torch.float32:
        assert_matches(got, want, forward=1e-5, gradient=1e-4)
        return
    assert (got[0].token_logprob - want[0].token_logprob.detach()).abs().max() <= 0.02  # logits rounded to bfloat16
    for name, gradient in want[1].items():
        assert (got[1][name].double() - gradient).norm() <= 0.02 * gradient.norm(), name


def test_two_runs_are_bitwise_equal_and_wait_for_nothing(cuda):
    problem = on_device(make_problem(LENGTHS, width=64, vocabulary=151_936), cuda).cast(torch.bfloat16)
    head = [problem.tensors[name].requires_grad_(name != "targets") for name in ("hidden", "weight", "targets")]
    assert explain(head[0], head[1]) == "cuda: FASTFLOW_KERNELS asks for it"
    linear_logprob(*head).sum().backward()  # fills what is asked of a device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        runs = [linear_logprob(*head), linear_logprob(*head)]
        gradients = [torch.autograd.grad(run.sum(), head[0])[0] for run in runs]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*runs) and torch.equal(*gradients)
