"""How far an answer is from float64, and what is too far.

    float32   log-probs and loss 1e-5, gradients 1e-4: largest difference over largest value, and 2-norms
    bfloat16  gradients, in the 2-norm, 1.5 times the error of the materialised baseline with bfloat16 logits (0.02
              where that could not run); log-probs 2e-3 nats on the same bfloat16 inputs, on a CPU, whose products
              round the logits, 1.5 times the baseline's (0.02)

A poisoned output makes an error infinite.
"""

import math
import sys

from torch import Tensor

from bench.shapes import Group

FORWARD_BOUND, GRADIENT_BOUND = 1e-5, 1e-4  # float32, relative
LOGPROB_BOUND = 2e-3  # bfloat16, nats
BASELINE_FACTOR, FALLBACK_BOUND = 1.5, 0.02  # bfloat16, relative 2-norm
BASELINE = "eager"
GRADIENTS = ("d_hidden", "d_weight", "d_log_z")


def errors_of(outputs: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """For each output NAME: NAME_max and NAME_norm, relative; for token log-probs also the largest error in nats."""
    errors = {}
    for name, value in outputs.items():
        difference, want = value.double() - exact[name], exact[name]
        largest = difference.abs().max().item()
        errors[f"{name}_max"] = largest / (want.abs().max().item() or 1.0)
        errors[f"{name}_norm"] = difference.norm().item() / (want.norm().item() or 1.0)
        if name == "token_logprob":
            errors["token_logprob_abs"] = largest
    return {name: value if math.isfinite(value) else math.inf for name, value in errors.items()}


def worst(errors: dict[str, float], kind: str, names: tuple[str, ...]) -> float | None:
    """The largest of the errors of one kind ("max" or "norm") among these outputs."""
    return max((errors[f"{name}_{kind}"] for name in names if f"{name}_{kind}" in errors), default=None)


def violations(errors: dict[str, float], group: Group, baseline: dict[str, float] | None) -> list[str]:
    """What is wrong with an answer, in words; empty where it is right."""
    bounds = dict.fromkeys(errors, sys.float_info.max)  # whatever has no bound must at least be finite
    if group.dtype == "float32":
        bounds |= {name: GRADIENT_BOUND if name.startswith("d_") else FORWARD_BOUND for name in errors}
        bounds["token_logprob_abs"] = sys.float_info.max  # the relative error holds it
    else:
        bounds["token_logprob_abs"] = LOGPROB_BOUND
        against_baseline = [f"{gradient}_norm" for gradient in GRADIENTS]
        for name in against_baseline + ["token_logprob_abs"] * (group.device == "cpu"):
            bounds[name] = BASELINE_FACTOR * baseline[name] if baseline and name in baseline else FALLBACK_BOUND
    return [
        f"{name} is off by {value:.1e} (bound {bounds[name]:.1e})"
        for name, value in errors.items()
        if value > bounds[name]
    ]
