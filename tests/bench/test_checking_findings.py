"""Each kind of finding on a kernel of a few lines, and nothing on the same kernel done right."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from packaging.version import Version

pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.checking.findings import Findings
from bench.checking.interpreter import checked
from bench.checking.launch import ORDERS, Rules

NEEDS_OLDER_NUMPY = Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here"),
    pytest.mark.skipif(NEEDS_OLDER_NUMPY, reason="the interpreter of triton 3.6: pip install 'numpy<2.4'"),
]


@triton.jit
def copy_kernel(source, out, size, stride, BLOCK: tl.constexpr):
    places = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    values = tl.load(source + places, mask=places < size, other=0.0)
    tl.store(out + places, values, mask=places < size)


@triton.jit
def careless_kernel(source, out, size, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(out + places, tl.load(source + places, mask=places < size), mask=places < size)


@triton.jit
def column_kernel(matrix, out, stride, column, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)
    tl.store(out + rows, tl.load(matrix + rows * stride + column))


@triton.jit
def reversing_kernel(values, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(values + BLOCK - 1 - places, tl.load(values + places))
    tl.store(values + places, tl.load(values + places) + 1.0)


@triton.jit
def crowd_kernel(out, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(out + places // 2, places.to(tl.float32))


@triton.jit
def chain_kernel(values):
    number = tl.program_id(0)
    tl.store(values + number + 1, tl.load(values + number))


@triton.jit
def narrow_kernel(source, out, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    values = tl.load(source + places)
    tl.store(out + places, values + values)


@triton.jit
def count_kernel(total, HAS_READER: tl.constexpr):
    tl.atomic_add(total, 1.0)
    if HAS_READER:
        tl.device_assert(tl.load(total) > 0.0, "counted")


@triton.jit
def asserting_kernel(values):
    tl.device_assert(tl.load(values) > 0.0, "must be positive")


@triton.jit
def tile_store_kernel(out, BLOCK: tl.constexpr):
    out.store([0, 0], tl.full((BLOCK, BLOCK), 1.0, tl.float32))


def findings_of(launch, **rules) -> list[str]:
    """kind: words of what the launch is found to do."""
    findings = Findings()
    with checked(Rules(**rules), findings, Counter()):
        launch()
    return [f"{finding.kind}: {finding.words}" for finding in findings]


def copy(source, out, size=None, stride=16, programs=2):
    copy_kernel[(programs,)](source, out, out.numel() if size is None else size, stride, BLOCK=16)


@pytest.mark.parametrize("order", ORDERS)
def test_a_sound_kernel_has_no_finding(order):
    source, out = torch.randn(20), torch.zeros(20)
    assert findings_of(lambda: copy(source, out), order=order, wholly_written={"copy_kernel": ("out",)}) == []
    assert torch.equal(source, out)


def test_bounds_are_those_of_the_view():
    matrix = torch.zeros(4, 10)
    found = findings_of(lambda: column_kernel[(1,)](matrix[:, :8], torch.zeros(4), 10, 9, BLOCK=4))
    assert found == ["bounds: load of matrix[0, 9], whose shape is [4, 8], 4 lanes"]
    assert findings_of(lambda: column_kernel[(1,)](matrix[:, :8], torch.zeros(4), 10, 7, BLOCK=4)) == []


def test_a_store_out_of_bounds_is_not_done():
    memory = torch.zeros(32)
    found = findings_of(lambda: copy(torch.ones(32), memory[:20], size=32))
    assert found == ["bounds: store of out[20], whose shape is [20], 12 lanes"]
    assert memory.sum() == 20


def test_memory_that_nobody_wrote_is_poison():
    found = findings_of(lambda: copy(torch.empty(20), torch.zeros(20)))
    assert found == ["poison: 16 lanes load what nobody wrote"]
    assert findings_of(lambda: copy(torch.full((20,), torch.nan), torch.zeros(20))) == []


def test_an_address_that_two_programs_store_to():
    found = findings_of(lambda: copy(torch.ones(20), torch.zeros(20), stride=8))
    assert found == ["race: programs (0, 0, 0) and (1, 0, 0) both store to the same 8 addresses"]


def test_an_address_that_two_lanes_store_to():
    found = findings_of(lambda: crowd_kernel[(1,)](torch.zeros(8), BLOCK=8))
    assert found == ["race: two lanes of one store share an address"]


def test_a_program_that_reads_what_another_writes_is_a_race():
    found = findings_of(lambda: chain_kernel[(3,)](torch.zeros(4)))
    assert found == ["race: programs (1, 0, 0) and (0, 0, 0) load and store the same 1 addresses"]


def test_atomic_updates_race_with_nobody_but_loads_and_stores():
    total = torch.zeros(1)
    assert findings_of(lambda: count_kernel[(3,)](total, HAS_READER=False)) == []
    assert total.item() == 3
    found = findings_of(lambda: count_kernel[(3,)](total, HAS_READER=True))
    assert found == ["race: programs (0, 0, 0) and (1, 0, 0) load and update the same 1 addresses"]


def test_a_load_after_a_store_to_the_same_address_needs_a_barrier():
    found = findings_of(lambda: reversing_kernel[(1,)](torch.arange(8.0), BLOCK=8))
    assert found == ["reread: loads an address that this program stored to"]


def test_a_gap_in_an_output():
    found = findings_of(lambda: copy(torch.ones(40), torch.zeros(40)), wholly_written={"copy_kernel": ("out",)})
    assert found == ["gap: no program writes 8 elements of out"]


def test_an_output_that_a_kernel_does_not_have():
    with pytest.raises(ValueError, match="copy_kernel has no arguments total; correct wholly_written"):
        findings_of(lambda: copy(torch.ones(2), torch.ones(2)), wholly_written={"copy_kernel": ("total",)})


def test_int32_that_wraps_at_sizes_without_memory():
    def launch(size):
        copy(torch.empty(size, device="meta"), torch.empty(size, device="meta"), programs=triton.cdiv(size, 16))

    found = findings_of(lambda: launch(2**31 + 99), sample=4)
    assert "overflow: int32 overflow detected for operation mul" in found
    assert findings_of(lambda: launch(2**31 - 32), sample=4) == []


def test_lanes_that_are_switched_off_hold_nothing():
    found = findings_of(lambda: careless_kernel[(1,)](torch.ones(5), torch.zeros(5), 5, BLOCK=8))
    assert found == ["undefined: a load with a mask and without `other`"]
    assert findings_of(lambda: careless_kernel[(1,)](torch.ones(8), torch.zeros(8), 8, BLOCK=8)) == []


def test_arithmetic_in_bfloat16_is_refused():
    source = torch.ones(8, dtype=torch.bfloat16)
    assert findings_of(lambda: narrow_kernel[(1,)](source, source.clone(), BLOCK=8)) == ["bfloat16: add of bfloat16"]
    assert findings_of(lambda: narrow_kernel[(1,)](source.float(), source.float(), BLOCK=8)) == []


def test_casts_to_bfloat16_are_torch_s():
    source = torch.tensor([1.00390625, 1.01171875, -3e38, 3.4e38, torch.inf, 1e-40, -0.0, torch.pi])
    out = torch.zeros(8, dtype=torch.bfloat16)
    assert findings_of(lambda: copy(source, out, programs=1)) == []
    assert torch.equal(out, source.bfloat16())


def test_an_assertion_of_the_kernel():
    assert findings_of(lambda: asserting_kernel[(1,)](torch.zeros(1))) == ["assertion: must be positive"]
    assert findings_of(lambda: asserting_kernel[(1,)](torch.ones(1))) == []


def test_a_grid_that_no_gpu_launches():
    found = findings_of(lambda: asserting_kernel[(1, 2**16)](torch.ones(1)), sample=2)
    assert found == ["grid: a grid of (1, 65536, 1); the limits are (2147483647, 65535, 65535)"]


def tile_store(matrix):
    """Of a tile of 16 rows and columns, through a descriptor."""
    tile_store_kernel[(1,)](TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [16, 16]), BLOCK=16)


def test_a_tma_store_takes_the_padding_to_the_end_of_its_chunk():
    memory = torch.zeros(3, 16)
    assert findings_of(lambda: tile_store(memory[:, :9])) == []
    assert memory.count_nonzero() == 3 * 12  # 9 columns are two chunks of four and one entry


def test_a_tma_store_needs_memory_behind_the_last_row():
    memory = torch.zeros(2 * 12 + 9)
    found = findings_of(lambda: tile_store(memory.as_strided((3, 9), (12, 1))))
    assert found == ["bounds: out: a TMA store writes whole chunks of 16 bytes, the last row's behind its memory"]
    assert memory.count_nonzero() == len(memory)
