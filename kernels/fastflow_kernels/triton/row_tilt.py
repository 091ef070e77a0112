"""The tilted direction of rows of logits that a library's product has written (tilt.py). One program a row."""

import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.triton.logit import LEAST_EXPONENT, soft_cap_slope
from fastflow_kernels.triton.row import BLOCK_BYTES, logits_at


@triton.jit(do_not_specialize_on_alignment=["slope"])  # the caller's own, from an odd row on
def row_tilt_kernel(
    logits,  # (R, V) float32 or bfloat16
    bias,  # (V,) float32, or unused
    reference,  # (R,) float32
    constant,  # (R,) float32
    slope,  # (R,) float32
    direction,  # (R, V): may be `logits` itself
    vocabulary,
    logits_stride,
    direction_stride,
    inverse_temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    own_reference, own_constant, own_slope = (tl.load(reference + row), tl.load(constant + row), tl.load(slope + row))
    for start in range(0, vocabulary, BLOCK_VOCABULARY):
        columns = start + tl.arange(0, BLOCK_VOCABULARY)
        inside = columns < vocabulary
        capped, scaled = logits_at(
            logits, bias, row * logits_stride, columns, inside, inverse_temperature, softcap, HAS_BIAS, HAS_SOFTCAP
        )
        exponents = scaled - own_reference
        values = tl.exp(exponents) * (own_constant + own_slope * tl.maximum(exponents, LEAST_EXPONENT))
        if HAS_SOFTCAP:
            values *= soft_cap_slope(capped, softcap)
        pointers = direction + row * direction_stride + columns
        tl.store(pointers, values.to(direction.dtype.element_ty), mask=inside)


def tilt_rows(logits: Tensor, head: Head, reference: Tensor, affine: tuple[Tensor, Tensor], direction: Tensor) -> None:
    """Fill direction (R, V), which may be `logits`, with e (constant + slope u), e = exp(u), u = logit - reference.

    logits: (R, V) float32 or bfloat16, hidden @ weight^T alone: bias, soft-cap and temperature are applied here.
    reference: (R,) float32, after the temperature, in nats; affine: constant and slope, (R,) float32 each.
    """
    row_count, vocabulary = logits.shape
    if row_count:
        row_tilt_kernel[(row_count,)](
            logits,
            head.bias,
            reference,
            *affine,
            direction,
            vocabulary,
            logits.stride(0),
            direction.stride(0),
            1.0 / head.temperature,
            head.softcap or 0.0,
            HAS_BIAS=head.bias is not None,
            HAS_SOFTCAP=head.softcap is not None,
            BLOCK_VOCABULARY=min(BLOCK_BYTES // logits.itemsize, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )
