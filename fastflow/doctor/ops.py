"""Compute the fused loss on this machine's device, and compare it with float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastflow.doctor.check import BROKEN, OK, Check
from fastflow.errors import message_of

if TYPE_CHECKING:
    import torch

# Relative to the largest entry. float32 measures 1e-6 on a CPU; bfloat16 rounds finished gradients to 2^-8.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
LENGTHS = (5, 1, 12)
WIDTH, VOCABULARY = 64, 320


def check_ops(cuda: bool) -> list[Check]:
    """Check flow_loss in each type that training uses on this device."""
    return [_check("cuda" if cuda else "cpu", name) for name in (("float32", "bfloat16") if cuda else ("float32",))]


def _check(device: str, dtype_name: str) -> Check:
    import torch

    from fastflow_kernels import explain

    name, dtype = f"flow_loss, {dtype_name}", getattr(torch, dtype_name)
    try:
        chosen = explain(
            torch.zeros(1, WIDTH, device=device, dtype=dtype), torch.zeros(1, WIDTH, device=device, dtype=dtype)
        )
        error = relative_error(device, dtype)
    except (RuntimeError, ValueError, ImportError) as failure:
        reason = message_of(failure)
        return Check(name, BROKEN, reason, "FASTFLOW_KERNELS=torch avoids the Triton kernels", required=True)
    found = f"{chosen}; gradients within {error:.0e} of float64"
    if not error <= BOUNDS[dtype_name]:
        found = f"{chosen}; gradients {error:.0e} away from float64, over {BOUNDS[dtype_name]:g}"
        return Check(
            name, BROKEN, found, "set FASTFLOW_KERNELS=torch, and report what `fastflow verify` says", required=True
        )
    return Check(name, OK, found, required=True)


def relative_error(device: str, dtype: torch.dtype) -> float:
    """Return the largest error of the gradients of hidden states and head, relative to the largest entry of each."""
    import torch

    from fastflow_kernels import FlowLoss, flow_loss, reference

    generator = torch.Generator().manual_seed(0)
    rows, count = sum(LENGTHS), len(LENGTHS)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5).to(dtype)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    boundaries = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    length = torch.tensor(LENGTHS, dtype=torch.float64)
    known = {
        "log_z": torch.zeros(count), "log_target": torch.full((count,), -4.0), "length_scale": 1 / length,
        "behaviour_logprob": -5.5 * length,
    }  # fmt: skip

    def gradients(op: Callable[..., object], device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.to(device, dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        terms = {name: value.to(device, accumulator) for name, value in known.items()}
        settings = {"clip_low": 0.2, "clip_high": 0.28, "normaliser": float(count)}
        result = op(*leaves, targets.to(device), boundaries, **terms, **settings)
        assert isinstance(result, FlowLoss)  # alone, where no statistics are asked for
        return [gradient.double().cpu() for gradient in torch.autograd.grad(result.loss, leaves)]

    pairs = zip(gradients(flow_loss, device, dtype), gradients(reference.flow_loss, "cpu", torch.float64), strict=True)
    return max(float((ours - exact).abs().max() / exact.abs().max()) for ours, exact in pairs)
