"""The three matrix products around a block of logits, each with a float32 (or float64) result.

Which type the products multiply in, by the type of the inputs:

    float64             float64
    float32             float32
    bfloat16 on CUDA    bfloat16 factors, float32 accumulators and results (tensor cores)
    bfloat16 elsewhere  float32: a bfloat16 result would round the logits, so the head is upcast, once a call
                        (4 V D bytes while the call runs)
    float16             float32 everywhere: its range is too narrow for gradient coefficients

float32 factors are rounded to TF32 on CUDA where torch.set_float32_matmul_precision asks for that.

A result is never rounded to half precision; that happens to finished gradients only.
"""

import torch
from torch import Tensor


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of logits, log-probs and gradient sums for inputs of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def factor_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Type in which the two enter their product, by the table above.

    The narrower type counts where they differ, and autocast's where that is on and the inputs are float32.
    """
    device = hidden.device.type
    dtype = min(hidden.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.bfloat16 and device == "cuda":
        return torch.bfloat16
    return accumulator_dtype(dtype)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, scale: float = 1.0) -> Tensor:
    """out (R, V) = scale * (hidden (R, D) @ weight (V, D)^T + bias (V,))."""
    if hidden.dtype != out.dtype:
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)
        if bias is not None:
            out.add_(bias)
        return out if scale == 1.0 else out.mul_(scale)
    if bias is None:
        return torch.addmm(out, hidden, weight.t(), beta=0, alpha=scale, out=out)
    return torch.addmm(bias, hidden, weight.t(), beta=scale, alpha=scale, out=out)


def back_project(direction: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out (R, D) = direction (R, V) @ weight (V, D)."""
    if weight.dtype != out.dtype:
        return torch.mm(direction.to(weight.dtype), weight, out_dtype=out.dtype, out=out)
    return torch.mm(direction, weight, out=out)


def accumulate_(total: Tensor, direction: Tensor, rows: Tensor, *, overwrite: bool) -> Tensor:
    """total (V, D) += direction (R, V)^T @ rows (R, D), or = where `overwrite`."""
    if rows.dtype == total.dtype:
        return total.addmm_(direction.t(), rows, beta=0 if overwrite else 1)
    left = direction.to(rows.dtype).t()
    if overwrite:
        return torch.mm(left, rows, out_dtype=total.dtype, out=total)
    return torch.addmm(total, left, rows, out_dtype=total.dtype, out=total)
