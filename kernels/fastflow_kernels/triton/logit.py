"""What stands between a row of the product hidden @ weight^T and a logit; shared by the kernels, inlined."""

import math

import triton
import triton.language as tl

from fastflow_kernels.head import Head

NATS_PER_BIT = math.log(2.0)
SERIES_BELOW = tl.constexpr(0.12)  # of the hyperbolic tangent
LEAST_LOGIT = tl.constexpr(-1e38)  # in place of -inf, from which nothing can be subtracted
LEAST_EXPONENT = tl.constexpr(-200.0)  # in nats or bits: exponentials are 0 there, and 0 * -inf would be nan


def bits_per_logit(head: Head) -> float:
    """What a logit ahead of the temperature is multiplied by, to stand in an exponent of two."""
    return 1.0 / (head.temperature * NATS_PER_BIT)


@triton.jit
def soft_capped(values, softcap):
    """softcap * tanh(values / softcap), within a few float32 roundings of itself."""
    ratio = values / softcap
    decay = tl.exp(-2.0 * tl.abs(ratio))
    size = (1.0 - decay) / (1.0 + decay)
    capped = softcap * tl.where(ratio < 0.0, -size, size)
    # near 0 the quotient would cancel; the series' next term is 17/315 ratio^6, 2e-7 at SERIES_BELOW
    square = ratio * ratio
    series = values * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)))
    return tl.where(square < SERIES_BELOW * SERIES_BELOW, series, capped)


@triton.jit
def soft_cap_slope(capped, softcap):
    """Derivative of `soft_capped`, from its result."""
    fraction = capped / softcap
    return 1.0 - fraction * fraction
