"""The three products by either library, in pieces, and in every type they are asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastflow_kernels import matmul
from kernel_problems import relative_error

ROWS, WIDTH, VOCABULARY = 24, 40, 72
needs_onednn = pytest.mark.skipif(not matmul._has_onednn(), reason="needs torch with oneDNN on an x86 CPU")


@pytest.fixture(params=[pytest.param("onednn", marks=needs_onednn), "torch"])
def library(request, monkeypatch):
    monkeypatch.setattr(matmul, "ONEDNN_PRODUCTS", 0 if request.param == "onednn" else 2**62)
    monkeypatch.setattr(matmul, "_has_avx512", lambda: True)


def factors(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (R, D), weight (V, D), direction (R, V)."""
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, WIDTH), (VOCABULARY, WIDTH), (ROWS, VOCABULARY)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def test_a_projection(library):
    hidden, weight, _ = factors(torch.float32)
    assert relative_error(matmul.project(hidden, weight), hidden.double() @ weight.double().t()) <= 1e-6
    part = weight[8:41]  # as a panel's columns
    assert relative_error(matmul.project(hidden, part), hidden.double() @ part.double().t()) <= 1e-6


@pytest.mark.parametrize("overwrite", [True, False])
def test_onto_the_hidden_states(library, overwrite):
    _, weight, direction = factors(torch.float32)
    total = torch.full((ROWS, WIDTH), torch.nan if overwrite else 3.0)
    want = direction.double() @ weight.double() + (0.0 if overwrite else 3.0)
    assert matmul.back_project_(total, direction, weight, overwrite=overwrite).data_ptr() == total.data_ptr()
    assert relative_error(total, want) <= 1e-6


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("total_type", [torch.float32, torch.bfloat16])
def test_bfloat16_onto_the_head(overwrite, total_type, monkeypatch):
    """In pieces of five columns of the vocabulary where the sum is float32."""
    monkeypatch.setattr(matmul, "PIECE_BYTES", 5 * WIDTH * 2)
    hidden, _, direction = factors(torch.bfloat16)
    total = torch.full((VOCABULARY, WIDTH), torch.nan if overwrite else 3.0, dtype=total_type)
    want = direction.double().t() @ hidden.double() + (0.0 if overwrite else 3.0)
    assert matmul.accumulate_(total, direction, hidden, overwrite=overwrite).data_ptr() == total.data_ptr()
    assert relative_error(total, want) <= 2**-8


@needs_onednn
def test_large_products_of_float32_are_onednns(monkeypatch):
    """And no others: small ones would pay for its call."""
    asked = []
    product = matmul._onednn_product
    monkeypatch.setattr(matmul, "_onednn_product", lambda *factors: asked.append(factors) or product(*factors))
    hidden, weight, _ = factors(torch.float32)
    matmul.project(hidden, weight)
    matmul.project(hidden.double(), weight.double())
    assert not asked
    monkeypatch.setattr(matmul, "ONEDNN_PRODUCTS", ROWS * WIDTH * VOCABULARY)
    matmul.project(hidden, weight)
    assert len(asked) == 1


@needs_onednn
@pytest.mark.parametrize("has_avx512", [True, False])
def test_without_avx512_mkl_takes_the_product_onto_the_hidden_states(has_avx512, monkeypatch):
    asked = []
    product = matmul._onednn_product
    monkeypatch.setattr(matmul, "_onednn_product", lambda *factors: asked.append(factors) or product(*factors))
    monkeypatch.setattr(matmul, "ONEDNN_PRODUCTS", 0)
    monkeypatch.setattr(matmul, "_has_avx512", lambda: has_avx512)
    hidden, weight, direction = factors(torch.float32)
    matmul.project(hidden, weight)
    assert len(asked) == 1
    total = torch.empty(ROWS, WIDTH)
    matmul.back_project_(total, direction, weight, overwrite=True)
    assert len(asked) == 1 + has_avx512
    assert relative_error(total, direction.double() @ weight.double()) <= 1e-6


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86 CPU")
def test_what_aten_is_held_to_counts():
    """In a process of its own, since ATen reads it once."""
    show = "from fastflow_kernels import matmul; print(matmul._has_avx512() or matmul.cpu_multiplies_bfloat16())"
    held = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", show], env=held, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_types_of_the_table(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: True)
    table = {torch.float16: torch.float32} | {dtype: dtype for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    for dtype, factor in table.items():
        entry = torch.zeros(1, 1, dtype=dtype)
        assert matmul.factor_dtype(entry, entry) == matmul.product_dtype(factor, cpu) == factor
    for factor in (torch.bfloat16, torch.float16):
        assert matmul.product_dtype(factor, torch.device("cuda")) == torch.float32
        assert matmul.direction_dtype(factor) == torch.bfloat16
    monkeypatch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: False)
    entry = torch.zeros(1, 1, dtype=torch.bfloat16)
    assert matmul.factor_dtype(entry, entry) == torch.float32


@pytest.mark.parametrize(
    ("hidden", "weight", "autocast", "expected"),
    [
        (torch.float16, torch.float16, None, torch.float16),
        (torch.float32, torch.float32, torch.float16, torch.float16),
        (torch.float16, torch.float32, torch.float16, torch.float16),
        (torch.float16, torch.float32, None, torch.float32),
        (torch.float16, torch.bfloat16, None, torch.float32),
        (torch.bfloat16, torch.float32, None, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("has_tensor_cores", [True, False])
def test_float16_on_cuda(hidden, weight, autocast, expected, has_tensor_cores, monkeypatch):
    """Only where nothing with more range is narrowed unasked, and the device multiplies it on tensor cores."""
    monkeypatch.setattr(matmul, "cuda_multiplies_float16", lambda index: has_tensor_cores)
    on_cuda = [SimpleNamespace(dtype=dtype, device=torch.device("cuda", 0)) for dtype in (hidden, weight)]
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: autocast is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: autocast)
    found = matmul.factor_dtype(*on_cuda)
    assert found == (torch.float32 if expected == torch.float16 and not has_tensor_cores else expected)
