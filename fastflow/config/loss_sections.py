"""Settings of the loss: the method with its target or reward, the importance weight, the policy gradients' surrogate.

Where the paper leaves a value open, the help names the recipe that it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastflow.config.methods import (
    ANSWER,
    OFFLINE,
    PENALTY_PER_TOKEN,
    POLICY_GRADIENTS,
    Average,
    KlEstimator,
    Method,
    TokenRatio,
)
from fastflow.config.setting import Section, setting

LogZ = Literal["learned", "group_mean"]
Ratio = Literal["sequence", "token_mean"]


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """The method, and its target (residual = log_z + length_scale * log pi - log_target) or reward."""

    name: Method = setting(
        "powerflow",
        "powerflow, or a method that it is compared with: trajectory balance (tb_trajectory, tb_token, flowrl, tba) or "
        "a policy gradient (all others but distil, see surrogate). distil: maximum likelihood of the responses in "
        "data.path, without sampling",
    )
    alpha: float = setting(
        4.0,
        "Power of the base distribution: above 1 sharpens it, below 1 flattens it. For powerflow, tb_* and rl_*",
        above=0,
    )
    log_z: LogZ = setting(
        "learned",
        "Log normaliser: a small network on the prompt (learned, as in the paper), or the group's mean at the rollout",
    )
    truncated: Literal["keep", "drop"] = setting(
        "keep",
        "Responses cut at the length limit: treat them like others (keep), or leave them out of the loss (drop); "
        "policy gradients still compare rewards with theirs",
    )
    format_pattern: str | None = setting(
        None,
        "Regular expression that every well-formed response matches somewhere, special tokens included; without one, "
        "the penalty is off",
    )
    format_check: str | None = setting(
        None, "Function in place of format_pattern: package.module:function(response_text, record) -> bool"
    )
    format_penalty: float = setting(
        -0.5,
        f"psi of a malformed response: once a token for {' and '.join(PENALTY_PER_TOKEN)}, once a response for the "
        "other methods that read it",
        unit="nats",
        at_most=0,
    )
    reward: str | None = setting(
        None,
        "package.module:function(response_text, record) -> float, or the word answer: 1 where the response gives the "
        "record's answer, otherwise 0. flowrl, tba and grpo train on it; the methods of trajectory balance without a "
        "reward measure it alone",
    )
    grader: Literal["math", "numeric", "exact"] = setting(
        "math",
        "How answers are read and compared: for reward = answer, empo, ttrl and rent_unanswered; see fastflow grade",
    )
    answer_field: str = setting(
        "answer",
        "reward = answer: field of a record with its answer, or with a solution in a box; a field in a field by a dot, "
        "such as reward_model.ground_truth",
    )
    beta: float = setting(15.0, "Weight of the reward: normalised in the group for flowrl, as given for tba", above=0)
    flowrl_form: Literal["paper", "release", "recipe"] = setting(
        "paper",
        "flowrl: importance weight clipped by importance.clip_* (paper), unclipped (release: the first code), or at "
        "most 10 (recipe: the later code)",
    )
    empo_unparsed: Literal["zero", "own_cluster"] = setting(
        "zero", "empo: reward of a response without an answer: 0, or that of a cluster of its own"
    )
    ttrl_trained: int = setting(
        0,
        "ttrl: train on the first N responses of a group, while all of them vote; 0 trains on all. Published: 64 vote "
        "(batch.responses_per_prompt), 32 are trained on",
        unit="responses", at_least=0,
    )  # fmt: skip
    rent_unanswered: float | None = setting(
        None, "rent: reward of a response without an answer, -7 in the published code; null rewards it like others",
        below=0,
    )  # fmt: skip
    distil_average: Average = setting(
        "length_limit",
        "distil: weight of a token: 1 / (responses x rollout.max_response_tokens) (length_limit: maximum likelihood), "
        "1 / all tokens of the update (token_mean: the same where updates are large, in small ones shorter responses "
        "count more), or 1 / (responses x own length) (sequence_mean: they count more in all)",
    )

    @property
    def compares_answers(self) -> bool:
        """Whether the method asks for the answers that responses give."""
        return self.reward == ANSWER or self.name in ("empo", "ttrl") or self.rent_unanswered is not None

    @property
    def trains_log_z(self) -> bool:
        """Whether a network of log_z is trained beside the policy."""
        return self.log_z == "learned" and self.name not in (*POLICY_GRADIENTS, *OFFLINE)


@dataclass(frozen=True)
class ImportanceConfig(Section):
    """The clipped importance weight, which corrects for updates since the rollout."""

    ratio: Ratio = setting(
        "sequence", "pi / pi_old of the whole response (paper), or its geometric mean per token (varies less)"
    )
    clip_low: float = setting(0.2, "Lower bound of the weight: 1 - clip_low (FlowRL's value)", at_least=0, at_most=1)
    clip_high: float = setting(0.28, "Upper bound of the weight: 1 + clip_high (FlowRL's value)", at_least=0)
    source: Literal["rollout", "recompute"] = setting(
        "rollout",
        "Behaviour log-probs: those of the sampler (rollout), or the trainer's before the first update (recompute)",
    )


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
    score_base: bool = setting(
        True,
        "Score the responses under the base where neither the reward nor the KL reads it, for slope, base_logprob_mean "
        "and base_kl; false loads no base, which spares its memory and its time",
    )
