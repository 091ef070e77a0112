"""The methods by name, and their families."""

from __future__ import annotations

from typing import Literal

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
REWARD_BALANCES = ("flowrl", "tba")  # trajectory balance towards the base times exp(beta * reward): no alpha
POLICY_GRADIENTS = (*LIKELIHOOD_GRADIENTS, *REWARD_GRADIENTS)
OFFLINE = ("distil",)  # they learn from recorded responses: nothing is sampled, and no base is read
WITHOUT_ALPHA = (*REWARD_BALANCES, *REWARD_GRADIENTS, *OFFLINE)  # they head for no power of the base
SLOPE_IS_ALPHA = ("powerflow",)  # at its optimum; others that read alpha have another target, and slope, there
WITHOUT_PENALTY = (*REWARD_GRADIENTS, *OFFLINE)  # they read no psi: what is malformed is measured alone
PENALTY_PER_TOKEN = ("powerflow", "flowrl")  # their psi counts once a token; that of the others once a response
RESPONSE_FIELD = "response"
TAKE_A_REWARD = ("flowrl", "tba", "grpo")
ANSWER = "answer"  # objective.reward: whether the response's answer is the record's
