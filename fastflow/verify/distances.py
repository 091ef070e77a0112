"""How far a result is from the exact one: a gradient in shares of its largest entry, a distribution in TV and KL."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fastflow.verify.check import Check
from fastflow.verify.exact import kl_divergence, total_variation


def gradient_error(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """Return the largest difference of the gradients that two lists of tensors hold, as a share of the largest entry of
    each in `want`.
    """
    errors = []
    for one, exact in zip(got, want, strict=True):
        assert one.grad is not None and exact.grad is not None, "a backward pass left no gradient"
        errors.append(float((one.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()))
    return max(errors)


def distribution_checks(title: str, reached: Tensor, target: Tensor, base: Tensor, bound: float) -> list[Check]:
    """Compare log-probabilities (n,) that training has reached with its target. base: those that it began with."""
    measures = {"TV": (total_variation, ""), "KL": (kl_divergence, "nats")}
    return [
        Check(f"{title}: {name}", measure(reached, target), bound, unit, f"base {measure(base, target):.3g}")
        for name, (measure, unit) in measures.items()
    ]
