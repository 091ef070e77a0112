"""From tensors to the CUDA library and back, on a CPU: the library is the kernels' own source compiled for it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastflow_kernels import reference
from fastflow_kernels.cuda import native as cuda_native
from fastflow_kernels.cuda.row_pass import CudaRowPass
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.projector import Projector
from kernel_problems import head_tensors, relative_error

HERE = Path(__file__).parent / "cuda"
SOURCES = HERE.parents[2] / "csrc" / "cuda"
VOCABULARY = 515


@pytest.fixture(scope="module")
def library(compile_cpp) -> ctypes.CDLL:
    flags = ["-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{SOURCES}", f"-I{HERE}"]
    return ctypes.CDLL(str(compile_cpp(*flags, "-x", "c++", SOURCES / "row_pass.cu")))


@pytest.fixture
def row_pass(library, monkeypatch) -> CudaRowPass:
    """The library's, and the projector's; no CPU has a stream."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=None))
    found = CudaRowPass(library)
    monkeypatch.setattr(cuda_native, "_load", lambda: cuda_native._Outcome(found))
    return found


def make_head(dtype: torch.dtype = torch.float32, **options) -> tuple[torch.Tensor, torch.Tensor, Head]:
    """hidden (7, 9), targets (7,) and a head over VOCABULARY."""
    tensors = head_tensors(7, width=9, vocabulary=VOCABULARY, seed=3, logit_limit=12.0, with_bias=True)
    head = Head.of(factors_of(tensors["weight"], dtype), tensors["bias"], **options)
    return tensors["hidden"].to(dtype), tensors["targets"], head


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 5.0}], ids=["plain", "all"])
def test_directions_and_log_probs(row_pass, options, monkeypatch):
    pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")
    from fastflow_kernels.cuda.projector import CudaRowsProjector

    for name in ("_finish_logprobs", "_finish_directions"):  # a Triton kernel, with tests of its own
        monkeypatch.setattr(CudaRowsProjector, name, getattr(Projector, name))
    hidden, targets, head = make_head(**options)
    projector = CudaRowsProjector(head, most_rows=7)
    leaf = hidden.double().requires_grad_()
    exact = reference.linear_logprob(leaf, head.weight.double(), targets, bias=head.bias.double(), **options)
    for run in (projector.logprobs, projector.directions):
        logprob = torch.empty(7)
        directions = run(hidden, targets, logprob)
        assert relative_error(logprob, exact.detach()) <= 1e-5
    (panel,) = directions.panels
    gradient = directions.factor.unsqueeze(1) * panel.matrix @ head.weight
    assert relative_error(gradient, torch.autograd.grad(exact.sum(), leaf)[0]) <= 1e-4


def test_what_is_stored_in_bfloat16(row_pass):
    _, targets, head = make_head()
    logits = torch.randn(7, VOCABULARY + 5)[:, :VOCABULARY]
    wide, narrow = torch.empty_like(logits), torch.empty(7, VOCABULARY, dtype=torch.bfloat16)
    statistics = row_pass(logits, head, targets, wide)
    assert all(map(torch.equal, statistics, row_pass(logits, head, targets, narrow)))
    assert torch.equal(narrow, wide.bfloat16())
    assert (wide.sum(dim=1) - statistics[2]).abs().max() <= 1e-5 * statistics[2].max()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 5.0}], ids=["plain", "all"])
def test_bfloat16_takes_two_bytes_an_entry(row_pass, options, monkeypatch):
    """Its logits are rounded once, in the block itself; log-probs see the target's as it is."""
    pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")
    from fastflow_kernels.cuda.projector import CudaRowsProjector
    from fastflow_kernels.triton import projectors, target_logit

    def interpreted(hidden, head, columns):
        """Of the same numbers in float32: Triton's interpreter computes bfloat16 wrongly."""
        return target_logit.target_logits(hidden.float(), replace(head, weight=head.weight.float()), columns)

    monkeypatch.setattr(projectors, "target_logits", interpreted)
    for name in ("_finish_logprobs", "_finish_directions"):  # a Triton kernel, with tests of its own
        monkeypatch.setattr(CudaRowsProjector, name, getattr(Projector, name))
    hidden, targets, head = make_head(torch.bfloat16, **options)
    projector = CudaRowsProjector(head, most_rows=7)
    leaf = hidden.double().requires_grad_()
    exact = reference.linear_logprob(leaf, head.weight.double(), targets, bias=head.bias.double(), **options)
    for run in (projector.logprobs, projector.directions):
        logprob = torch.empty(7)
        directions = run(hidden, targets, logprob)
        assert (logprob - exact.detach()).abs().max() <= 0.02
    (panel,) = directions.panels
    assert panel.matrix.dtype == torch.bfloat16 and panel.matrix.data_ptr() == projector._buffer.data_ptr()
    assert projector._buffer.nbytes == 7 * 520 * projector.entry_bytes(torch.bfloat16)
    gradient = directions.factor.unsqueeze(1) * panel.matrix.float() @ head.weight.float()
    assert relative_error(gradient, torch.autograd.grad(exact.sum(), leaf)[0]) <= 0.02


def test_a_target_logit_that_is_given(row_pass):
    """Is handed back, and the kernel does not ask for the target's own."""
    _, targets, head = make_head()
    logits = torch.randn(7, VOCABULARY).bfloat16()
    given = torch.randn(7)
    _, *expected = row_pass(logits.float(), head, targets, torch.empty(7, VOCABULARY))
    for exponentials in (None, torch.empty_like(logits), logits):
        found, *rest = row_pass(logits, head, targets, exponentials, given)
        assert found is given
        torch.testing.assert_close(rest, expected, rtol=1e-6, atol=0)


def test_wide_exponentials_of_narrow_logits_are_refused(row_pass):
    _, targets, head = make_head()
    with pytest.raises(RuntimeError, match="row pass was not launched: invalid argument"):
        row_pass(torch.zeros(7, VOCABULARY).bfloat16(), head, targets, torch.zeros(7, VOCABULARY))


def test_statistics_alone(row_pass):
    """By the other kernel, and for targets that are not dense."""
    _, targets, head = make_head()
    logits = torch.randn(7, VOCABULARY)
    loose = torch.stack([targets, targets * 0], dim=1)[:, 0]
    statistics, stored = row_pass(logits, head, loose, None), row_pass(logits, head, targets, torch.empty_like(logits))
    torch.testing.assert_close(statistics, stored, rtol=1e-6, atol=0)


def test_a_target_that_no_column_has(row_pass):
    _, _, head = make_head()
    targets = torch.tensor([-100, VOCABULARY, 0, 1, 2, 3, VOCABULARY - 1])
    target_logit, *_ = row_pass(torch.zeros(7, VOCABULARY), head, targets, None)
    assert target_logit.isnan().tolist() == [True, True, False, False, False, False, False]


def test_no_rows_are_no_launch(row_pass):
    _, _, head = make_head()
    nothing = torch.empty(0, VOCABULARY)
    assert all(output.shape == (0,) for output in row_pass(nothing, head, torch.empty(0, dtype=torch.int64), nothing))


def test_an_error_in_words(row_pass):
    _, _, head = make_head()
    with pytest.raises(RuntimeError, match="row pass was not launched: invalid argument"):
        row_pass(torch.empty(2, 0), head, torch.zeros(2, dtype=torch.int64), None)


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_native, "FILE", tmp_path / "_native_cuda.so")
    load = cuda_native._load.__wrapped__
    assert "without its CUDA library; run FASTFLOW_CUDA=1 pip install" in load().reason
    cuda_native.FILE.write_bytes(b"no library")
    assert "does not load" in load().reason
    monkeypatch.setattr(cuda_native, "_load", load)
    with pytest.raises(RuntimeError, match=r"does not load .*; run FASTFLOW_CUDA=1 .* source folder\.$"):
        cuda_native.row_pass()
    assert cuda_native.obstacle(torch.device("cpu"), torch.float32).endswith("not on cpu")


def test_a_library_of_another_interface(library, monkeypatch):
    monkeypatch.setattr(cuda_native, "FILE", Path(library._name))
    monkeypatch.setattr(cuda_native, "ABI_VERSION", math.inf)
    assert "has interface 2, and this fastflow needs inf" in cuda_native._load.__wrapped__().reason
