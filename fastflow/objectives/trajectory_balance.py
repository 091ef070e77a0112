"""The trajectory-balance family: one residual, log_z + length_scale * log pi(y) - log_target, in five forms.

Where every residual is zero, pi is proportional to the member's target. For `powerflow` the target is
p_base(y)^alpha * exp(-log_z * |y|), times exp(alpha * psi * |y|) for malformed responses. Its residual is per token:
long and short responses have equal weight, and length is a part of the target instead of an accident of the loss.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import with_literal_tokens
from fastflow.errors import FastflowError
from fastflow.objectives.objective import Evidence

Terms = tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]  # length_scale, log_target


def powerflow(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Length-aware trajectory balance (PowerFlow): 1/|y|, and alpha * (mean log p_base + psi)."""
    scale = 1 / evidence.length.clamp(min=1)
    return scale, settings.alpha * (scale * evidence.base_logprob + evidence.penalty)


def tb_trajectory(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Standard trajectory balance on p_base^alpha: lengths collapse for alpha above 1."""
    log_target = settings.alpha * (evidence.base_logprob + evidence.penalty)
    return torch.ones_like(evidence.length), log_target


def tb_token(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """Trajectory balance on p_base * exp((alpha - 1) * mean log p_base): responses decay into repetition.

    The form is not published. This is its natural reading, with psi inside the token mean as in powerflow.
    """
    mean = evidence.base_logprob / evidence.length.clamp(min=1)
    log_target = evidence.base_logprob + (settings.alpha - 1) * mean + settings.alpha * evidence.penalty
    return torch.ones_like(evidence.length), log_target


def flowrl(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """FlowRL: 1/|y|, and beta * reward + mean log p_base + psi. The user brings the reward."""
    scale = 1 / evidence.length.clamp(min=1)
    return scale, settings.beta * evidence.reward + scale * evidence.base_logprob + evidence.penalty


def tba(evidence: Evidence, settings: ObjectiveConfig) -> Terms:
    """TBA (trajectory balance with asynchrony): 1, and log p_base + beta * reward + psi, with log_z the group's mean.

    Its authors write reward / beta. The reward is taken as it is: the group's mean removes what all responses share.
    """
    log_target = evidence.base_logprob + settings.beta * evidence.reward + evidence.penalty
    return torch.ones_like(evidence.length), log_target


OBJECTIVES: dict[str, Callable[[Evidence, ObjectiveConfig], Terms]] = {
    "powerflow": powerflow,
    "tb_trajectory": tb_trajectory,
    "tb_token": tb_token,
    "flowrl": flowrl,
    "tba": tba,
}


def make_format_check(
    settings: ObjectiveConfig, special_tokens: Collection[str] = ()
) -> Callable[[str, dict[str, Any]], bool] | None:
    """Make the test for a well-formed response, (text, record) -> bool; None where the penalty is off.

    special_tokens: texts that stand for themselves in a format_pattern. Raises FastflowError for a broken pattern.
    """
    if settings.format_check is not None:
        return load_function(settings.format_check, "objective.format_check")
    if settings.format_pattern is None:
        return None
    try:
        pattern = re.compile(with_literal_tokens(settings.format_pattern, special_tokens), re.DOTALL)
    except re.error as error:
        raise FastflowError(
            f"objective.format_pattern {settings.format_pattern!r} is not a regular expression ({error}); correct it"
        ) from error
    return lambda text, record: pattern.search(text) is not None


def normalise_rewards(reward: Float[Tensor, " n"], responses_per_group: list[int]) -> Float[Tensor, " n"]:
    """Scale rewards to zero mean and unit deviation within each group. Equal rewards, and a group of one, give zeros.

    The deviation is that of a sample (n - 1), as in FlowRL's code and in verl's.
    """
    parts = [part - part.mean() for part in reward.split(responses_per_group)]
    return torch.cat([part / (part.std(correction=min(len(part) - 1, 1)) + 1e-6) for part in parts])


def load_function(name: str, setting: str) -> Callable[..., Any]:
    """Import `package.module:function`. Raises FastflowError, with the setting, where that fails."""
    module, _, attribute = name.partition(":")
    if module.endswith(".py"):
        raise FastflowError(
            f"{setting} = {name!r} names a file, but must name a module; {_as_module(module, attribute)}"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise FastflowError(f"{setting} = {name!r} cannot be imported ({error}); {_remedy(module, error)}") from error
    if not callable(function):
        raise FastflowError(f"{setting} = {name!r} is not callable; name a function")
    return function


def _as_module(file: str, attribute: str) -> str:
    """Say how the function of a file is named, and how its module is found."""
    path = Path(file)
    if not path.is_file():
        return f"there is no {file} either: write package.module:function"
    below = not path.is_absolute() and all(part.isidentifier() for part in path.with_suffix("").parts)
    folder = Path(".") if below else path.parent
    module = ".".join(path.relative_to(folder).with_suffix("").parts)
    return f"write {module}:{attribute or 'function'}, and start fastflow with PYTHONPATH={folder}"


def _remedy(module: str, error: Exception) -> str:
    """Say how to name a module, or how to have one of the working directory found: it is not imported from there."""
    first = module.partition(".")[0]
    here = Path(f"{first}.py") if os.path.isfile(f"{first}.py") else Path(first)
    if isinstance(error, ModuleNotFoundError) and error.name == first and here.exists():
        return f"{here} is in the working directory, which fastflow does not import from: start it with PYTHONPATH=."
    return "write package.module:function"
