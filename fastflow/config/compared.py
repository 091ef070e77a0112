"""Settings of the methods that PowerFlow is compared with, and which method reads which of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from fastflow.config.setting import Section, setting
from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from fastflow.config.schema import Config

Method = Literal[
    "powerflow", "tb_trajectory", "tb_token", "flowrl", "tba",
    "rl_trajectory", "rl_token", "grpo", "empo", "ttrl", "intuitor", "rent", "random_reward", "format_reward",
    "distil",
]  # fmt: skip
TokenRatio = Literal["token", "token_mean", "sequence"]
Average = Literal["token_mean", "sequence_mean", "length_limit"]
KlEstimator = Literal["k3", "k2"]

LIKELIHOOD_GRADIENTS = ("rl_trajectory", "rl_token")  # their reward holds the base's log-prob and the policy's own
REWARD_GRADIENTS = ("grpo", "empo", "ttrl", "intuitor", "rent", "random_reward", "format_reward")
POLICY_GRADIENTS = (*LIKELIHOOD_GRADIENTS, *REWARD_GRADIENTS)
OFFLINE = ("distil",)  # they learn from recorded responses: nothing is sampled, and no base is read
RESPONSE_FIELD = "response"
TAKE_A_REWARD = ("flowrl", "tba", "grpo")
ANSWER = "answer"  # objective.reward: whether the response's answer is the record's

_SERVES = {  # of the objective's settings
    "flowrl_form": "flowrl",
    "empo_unparsed": "empo",
    "rent_unanswered": "rent",
    "distil_average": "distil",
}
_READ_OFFLINE = ("max_response_tokens",)  # of the rollout's settings


@dataclass(frozen=True)
class SurrogateConfig(Section):
    """The clipped surrogate of the policy gradients: grpo, empo, ttrl, intuitor, rent, random_reward, format_reward,
    rl_trajectory and rl_token. Its bounds are importance.clip_low and importance.clip_high.
    """

    ratio: TokenRatio = setting(
        "token",
        "pi / pi_old that is clipped: of each token (GRPO), its geometric mean over the response (GSPO, EMPO's code), "
        "or of the whole response",
    )
    average: Average = setting(
        "token_mean",
        "Weight of a token: 1 / all tokens of the update (token_mean), 1 / (responses x own length) (sequence_mean, as "
        "first published), or 1 / (responses x rollout.max_response_tokens) (length_limit, Dr. GRPO)",
    )
    divide_by_std: bool = setting(
        True,
        "Divide the advantage by the deviation of the group's rewards; not for Dr. GRPO, and never for rl_trajectory "
        "and rl_token",
    )
    kl: float = setting(0.0, "Weight of KL(pi || p_base) per token in the loss; 0 leaves it out", at_least=0)
    kl_estimator: KlEstimator = setting(
        "k3",
        "How that is estimated from d = log p_base - log pi: exp(d) - d - 1 (k3, as GRPO), or d^2 / 2 (k2), whose "
        "gradient has no bias on-policy",
    )


def check_method(config: Config) -> None:
    """Raise FastflowError where the method that objective.name names contradicts other settings."""
    objective, name = config.objective, config.objective.name
    for entry in fields(objective):
        method = _SERVES.get(entry.name)
        if method not in (None, name) and getattr(objective, entry.name) != entry.default:
            raise FastflowError(
                f"objective.{entry.name} serves {method} alone, and objective.name is {name}; leave it out, or set "
                f"objective.name = {method}"
            )
    if name in TAKE_A_REWARD and objective.reward is None:
        raise FastflowError(
            f"objective.name = {name} needs objective.reward = answer (the record's answer) or package.module:function"
        )
    if name in POLICY_GRADIENTS and name not in TAKE_A_REWARD and objective.reward is not None:
        raise FastflowError(
            f"objective.name = {name} makes its own reward, so objective.reward = {objective.reward} would be ignored; "
            "leave it out, or set objective.name = grpo"
        )
    if name == "format_reward" and objective.format_pattern is None and objective.format_check is None:
        raise FastflowError(
            "objective.name = format_reward rewards well-formed responses; set objective.format_pattern or "
            "objective.format_check, which say what that is"
        )
    if name == "tba" and objective.log_z != "group_mean":
        raise FastflowError(
            "objective.name = tba takes log_z from the group; set objective.log_z = group_mean, or objective.name = "
            "flowrl"
        )
    if name in POLICY_GRADIENTS:
        _check_surrogate(config)
    else:
        for entry in fields(config.surrogate):
            if getattr(config.surrogate, entry.name) != entry.default:
                raise FastflowError(
                    f"surrogate.{entry.name} serves the policy gradients ({', '.join(POLICY_GRADIENTS)}), and "
                    f"objective.name = {name} is none of them; leave it out"
                )


def check_offline(config: Config) -> None:
    """Raise FastflowError for what says how responses are sampled or weighed where none is sampled, and for the
    reverse.
    """
    name = config.objective.name
    if name not in OFFLINE:
        if config.data.response_field != RESPONSE_FIELD:
            raise FastflowError(
                f"data.response_field serves {', '.join(OFFLINE)} alone, and objective.name = {name} samples its own "
                "responses; leave it out"
            )
        return
    for section in ("rollout", "importance"):
        values = getattr(config, section)
        for entry in fields(values):
            is_read = section == "rollout" and entry.name in _READ_OFFLINE
            if not is_read and getattr(values, entry.name) != entry.default:
                raise FastflowError(
                    f"{section}.{entry.name} has no meaning with objective.name = {name}, which samples nothing and "
                    "learns from the responses in data.path; leave it out"
                )
    no_use = [
        ("objective.log_z", config.objective.log_z != "learned", "has no log_z"),
        ("objective.reward", config.objective.reward is not None, "reads no reward"),
        ("model.base", config.model.base is not None, "loads no base"),
        ("eval.every", config.eval.every > 0, "has no sampler to answer with: ask the saves with fastflow evaluate"),
    ]
    for setting_, is_set, why in no_use:
        if is_set:
            raise FastflowError(f"{setting_} is set, but objective.name = {name} {why}; leave it out")


def _check_surrogate(config: Config) -> None:
    name, surrogate = config.objective.name, config.surrogate
    if config.batch.responses_per_prompt < 2:
        raise FastflowError(
            f"objective.name = {name} compares the responses of a group; set batch.responses_per_prompt to 2 or more, "
            "not 1"
        )
    if config.importance.ratio != "sequence":
        raise FastflowError(
            f"importance.ratio serves trajectory balance, and objective.name = {name} reads surrogate.ratio; set that "
            "instead"
        )
    if name in LIKELIHOOD_GRADIENTS:
        if surrogate.average == "sequence_mean":
            raise FastflowError(
                f"surrogate.average = sequence_mean divides by each response's length, so that objective.name = {name} "
                "would follow no gradient of its objective; set surrogate.average = token_mean or length_limit"
            )
        if surrogate.kl:
            raise FastflowError(
                f"surrogate.kl = {surrogate.kl:g} adds to the KL that objective.name = {name} holds already; leave it "
                "out, and choose its weight by objective.alpha = 1 + 1 / weight"
            )
