"""Multiplies a gradient that is there already by the upstream gradient of a loss, which the host need not know.

A loss that is the last node of its graph has an upstream gradient of one, and there is nothing to do: every program
reads that one number and ends. The head's gradient is large, and a pass over it would take some percent of the op.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.tiles import multiprocessors

BLOCK, PROGRAMS_PER_MULTIPROCESSOR = 8192, 4


@triton.jit
def upstream_kernel(gradient, out, upstream, size, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    if (not IN_PLACE) | (factor != 1.0):
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            entries = start + tl.arange(0, BLOCK)
            values = tl.load(gradient + entries, mask=entries < size, other=0.0).to(tl.float32) * factor
            tl.store(out + entries, values.to(out.dtype.element_ty), mask=entries < size)


def take_upstream(gradient: Tensor, upstream: Tensor, out: Tensor) -> Tensor:
    """out = gradient * upstream (), of any types but float64; out may be `gradient`. Both contiguous."""
    size = gradient.numel()
    if size:
        programs = min(triton.cdiv(size, BLOCK), PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(gradient))
        upstream_kernel[(programs,)](
            gradient,
            out,
            upstream,
            size,
            IN_PLACE=out.data_ptr() == gradient.data_ptr(),
            BLOCK=BLOCK,
            num_warps=8,
        )
    return out
