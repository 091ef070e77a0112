"""The trajectory-balance family: one residual, log_z + length_scale * log pi(y) - log_target, in five forms.

Where every residual is zero, pi is proportional to the member's target. For `powerflow` the target is
p_base(y)^alpha * exp(-log_z * |y|), times exp(alpha * psi * |y|) for malformed responses. Its residual is per token:
long and short responses have equal weight, and length is a part of the target instead of an accident of the loss. psi
has the residual's unit: nats per token for `powerflow` and `flowrl`, per response for the others, where the same number
is a smaller penalty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.schema import ObjectiveConfig
from fastflow.data.response_text import with_literal_tokens
from fastflow.errors import FastflowError
from fastflow.objectives.objective import Evidence
from fastflow.objectives.own_function import OwnFunction, Source

FormatCheck = Callable[[Sequence[str], Sequence[Source]], list[bool]]  # of texts and the records that they answer
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

    The form is not published. This is its natural reading, with psi beside the token mean, once a response.
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
    settings: ObjectiveConfig, special_tokens: Collection[str] = (), program: Program = NO_PROGRAM
) -> FormatCheck | None:
    """Make the test for well-formed responses; None where the penalty is off.

    special_tokens: texts that stand for themselves in a format_pattern. Raises FastflowError for a broken pattern, and
    for a function that cannot be had.
    """
    if settings.format_check is not None:
        function = OwnFunction("objective.format_check", settings.format_check, program)
        return lambda texts, sources: [bool(value) for value in function.values(texts, sources)]
    if settings.format_pattern is None:
        return None
    try:
        pattern = re.compile(with_literal_tokens(settings.format_pattern, special_tokens), re.DOTALL)
    except re.error as error:
        raise FastflowError(
            f"objective.format_pattern {settings.format_pattern!r} is not a regular expression ({error}); correct it"
        ) from error
    return lambda texts, sources: [pattern.search(text) is not None for text in texts]


def normalise_rewards(reward: Float[Tensor, " n"], responses_per_group: list[int]) -> Float[Tensor, " n"]:
    """Scale rewards to zero mean and unit deviation within each group. Equal rewards, and a group of one, give zeros.

    The deviation is that of a sample (n - 1), as in FlowRL's code and in verl's.
    """
    above = [part - part.min() for part in reward.split(responses_per_group)]  # equal rewards: their mean is exact
    parts = [part - part.mean() for part in above]
    return torch.cat([part / (part.std(correction=min(len(part) - 1, 1)) + 1e-6) for part in parts])
