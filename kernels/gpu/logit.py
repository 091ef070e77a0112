"""What stands between a row of the product hidden @ weight^T and a logit; shared by the kernels, inlined."""

import triton
import triton.language as tl


@triton.jit
def soft_capped(values, softcap):
    """softcap * tanh(values / softcap), within a few float32 roundings of softcap."""
    decay = tl.exp(-2.0 * tl.abs(values) / softcap)
    size = softcap * (1.0 - decay) / (1.0 + decay)
    return tl.where(values < 0.0, -size, size)


@triton.jit
def soft_cap_slope(capped, softcap):
    """Derivative of `soft_capped`, from its result."""
    fraction = capped / softcap
    return 1.0 - fraction * fraction
