"""The effective alpha of a policy: the power of its base that explains its log-probabilities best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from fastflow.data.packing import input_length, pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.evaluate.estimates import with_interval
from fastflow.evaluate.scores import ByPrompt
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.scoring import sum_per_sequence, to_flat_order, token_logprobs

TOKENS_PER_PASS = 8192
_EQUAL = 1e-12  # a sum of squares that rounding alone leaves

CONVENTION = (
    "slope of log p / |y| on log p_base / |y| over the sampled responses, with an intercept for each prompt (log Z); "
    "the error is clustered by prompt, its 95 % interval is by Student's t"
)


def effective_alpha(prompts: ByPrompt) -> dict[str, float | None]:
    """Regress the policy's log-probs on its base's over all responses, with an intercept for each prompt.

    With x = log p_base(y|q) / |y| and y = log p(y|q) / |y|, and both less their prompt's mean,
    alpha = sum x y / sum x^2. It is exact where p = p_base^alpha e^(-lambda_q |y|), the optimum that PowerFlow trains
    for with psi = 0: then y = alpha x - lambda_q. `sequence` is the slope of the sums, without the division by |y|:
    exact where p = p_base^alpha / Z_q. r2: share of the variance that the power explains. error: standard error of
    alpha, with the residuals of a prompt taken together, and the factor sqrt(G / (G - 1)) for G prompts whose responses
    differ. low, high: ends of the 95 % interval, by Student's t with G - 1 degrees of freedom. All are None where the
    responses do not differ.
    """
    lengths = [np.array([row["tokens"] for row in rows], dtype=np.float64) for rows in prompts]
    policy, base = (
        [np.array([row[name] for row in rows], dtype=np.float64) for rows in prompts]
        for name in ("policy_logprob", "base_logprob")
    )
    x = [_centred(value / length) for value, length in zip(base, lengths, strict=True)]
    y = [_centred(value / length) for value, length in zip(policy, lengths, strict=True)]
    spreads = [float(values @ values) for values in x]
    spread, differing = sum(spreads), sum(one > _EQUAL for one in spreads)
    if spread <= _EQUAL:
        return dict.fromkeys(("value", "error", "low", "high", "r2", "sequence"))
    alpha = float(sum(one @ other for one, other in zip(x, y, strict=True))) / spread
    left = [other - alpha * one for one, other in zip(x, y, strict=True)]
    total = float(sum(values @ values for values in y))
    unexplained = float(sum(values @ values for values in left))
    by_prompt = float(sum((one @ residual) ** 2 for one, residual in zip(x, left, strict=True)))
    sums, of_policy = [_centred(values) for values in base], [_centred(values) for values in policy]
    of_sums = float(sum(values @ values for values in sums))
    error = (by_prompt * differing / (differing - 1)) ** 0.5 / spread if differing > 1 else None
    return {
        **with_interval({"value": alpha, "error": error}, freedom=differing - 1),
        "r2": 1 - unexplained / total if total else None,
        "sequence": float(sum(one @ other for one, other in zip(sums, of_policy, strict=True))) / of_sums
        if of_sums
        else None,
    }


class LogprobScorer:
    """Scores responses under a policy with adapters, and under its base: the same weights with the adapters off."""

    def __init__(self, policy: PackedModel):
        self._models = (policy, AdaptersOff(policy))
        self._device = policy.device

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        """Return log p and log p_base of each response to its prompt, nats at temperature 1, summed over its tokens."""
        groups = [
            Group(prompt, (Trajectory(np.asarray(ids, np.int64), np.zeros(len(ids), np.float32), "stop"),))
            for prompt, ids in zip(prompts, responses, strict=True)
        ]
        longest = max(input_length(group.prompt, group.trajectories[0]) for group in groups)
        batches = [batch.to(self._device) for batch in pack(groups, max(TOKENS_PER_PASS, longest))]
        columns = []
        for model in self._models:
            sums = [sum_per_sequence(token_logprobs(model, batch), batch).cpu() for batch in batches]
            columns.append(to_flat_order(batches, sums).tolist())
        return list(zip(*columns, strict=True))


def _centred(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    centred: np.ndarray = values - values.mean()
    return centred
