"""What stands between a row of the product hidden @ weight^T and a logit; shared by the kernels, inlined."""

import ctypes
import math

import triton
import triton.language as tl

from fastflow_kernels.head import Head

NATS_PER_BIT = math.log(2.0)
LEAST_LOGIT = tl.constexpr(-1e38)  # in place of -inf, from which nothing can be subtracted
LEAST_EXPONENT = tl.constexpr(-200.0)  # in nats or bits: exponentials are 0 there, and 0 * -inf would be nan


def bits_per_logit(head: Head) -> float:
    """What a logit ahead of the temperature is multiplied by, to stand in an exponent of two.

    A float32, as kernels take it: Triton's interpreter would take more digits, and terms would not cancel.
    """
    return ctypes.c_float(1.0 / (head.temperature * NATS_PER_BIT)).value


@triton.jit
def soft_capped(values, softcap):
    """softcap * tanh(values / softcap), within a few float32 roundings of softcap.

    A series near 0 would keep the digits that a cap of thousands takes, and spills registers in one kernel or another.
    """
    decay = tl.exp(-2.0 * tl.abs(values) / softcap)
    size = softcap * (1.0 - decay) / (1.0 + decay)
    return tl.where(values < 0.0, -size, size)


@triton.jit
def soft_cap_slope(capped, softcap):
    """Derivative of `soft_capped`, from its result."""
    fraction = capped / softcap
    return 1.0 - fraction * fraction
