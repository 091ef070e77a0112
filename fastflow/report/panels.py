"""The curves of the report: their metrics, groups, units and colours."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from fastflow.config.methods import POLICY_GRADIENTS, SLOPE_IS_ALPHA

PER_RESPONSE = ("tb_trajectory", "tb_token", "tba")  # whose residual is not divided by the length


@dataclass(frozen=True)
class Mark:
    """One metric as a line, a dashed line (targets, bounds) or a stacked area, or a band from `key` up to `high`."""

    key: str
    label: str
    colour: str = "blue"
    kind: str = "line"
    high: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.high) if self.high else (self.key,)


@dataclass(frozen=True)
class Panel:
    """One small plot against the step. scale: multiplies the values, by 100 for percent."""

    name: str
    title: str
    unit: str
    marks: tuple[Mark, ...]
    scale: float = 1.0
    from_zero: bool = False
    may_be_log: bool = False


def panels(objective: str) -> list[tuple[str, list[Panel]]]:
    """Return all curves in named groups. objective: decides what the residual is."""
    advantages = objective in POLICY_GRADIENTS  # stand in place of residuals, and mean rewards in place of log Z
    residual, log_z = ("Advantage", "Mean reward") if advantages else ("Residual", "Log normaliser, log Z")
    unit = "as the reward" if advantages else "nats per response" if objective in PER_RESPONSE else "nats per token"
    of_loss = "clipped surrogate" if advantages else "mean weighted squared residual"
    arrived = "arrived when it equals alpha" if objective in SLOPE_IS_ALPHA else ""
    percent = functools.partial(Panel, unit="%", scale=100.0, from_zero=True)
    # fmt: off
    return [
        ("Towards the target", [
            Panel("slope", "Slope of log π on log p_base", arrived, (
                Mark("alpha", "target alpha", "muted", "dashed"), Mark("slope", "slope"))),
            Panel("logprob", "Log-probability", "nats per token, mean", (
                Mark("logprob_mean", "log π (policy)"), Mark("base_logprob_mean", "log p_base (base)", "orange"))),
            Panel("token_entropy", "Entropy per token", "nats", (Mark("token_entropy", "entropy"),), from_zero=True),
        ]),
        ("Responses", [
            Panel("length", "Response length", "tokens", (
                Mark("length_p10", "10th to 90th percentile", "blue", "band", "length_p90"),
                Mark("length_p50", "median"), Mark("length_mean", "mean", "orange"),
                Mark("length_max", "longest", "muted", "dashed")), from_zero=True),
            percent("flaws", "Cut, malformed, repetitive", marks=(
                Mark("truncated_share", "cut at the length limit", "orange"),
                Mark("malformed_share", "malformed", "purple"),
                Mark("repetition", "repeated 4-grams", "green"))),
            Panel("reward", "Reward", "mean, before it is normalised", (Mark("reward_mean", "mean"),)),
            Panel("sequence_entropy", "Entropy per response", "nats", (
                Mark("sequence_entropy", "entropy"),), from_zero=True),
        ]),
        ("Objective", [
            Panel("residual", residual, unit, (
                Mark("residual_low", "mean ± 1 standard deviation", "blue", "band", "residual_high"),
                Mark("residual_mean", "mean"))),
            Panel("loss", "Loss", of_loss, (Mark("loss", "loss"),), may_be_log=True),
            Panel("log_z", log_z, unit, (Mark("log_z", "mean"),)),
        ]),
        ("Update", [
            Panel("ratio", "Importance ratio", "π / π_old, before clipping", (
                Mark("ratio_p01", "1st to 99th percentile", "blue", "band", "ratio_p99"),
                Mark("ratio_p50", "median")), may_be_log=True),
            percent("weights", "Clipped weights", marks=(
                Mark("effective_sample_size", "effective sample size"),
                Mark("clipped_share", "clipped", "orange"))),
            Panel("mismatch", "Sampler against trainer", "nats per token, absolute difference", (
                Mark("mismatch_mean", "mean"), Mark("mismatch_p99", "99th percentile", "orange")), from_zero=True,
                may_be_log=True),
            Panel("gradient", "Gradient norm", "before clipping", (Mark("grad_norm", "norm"),),
                  from_zero=True, may_be_log=True),
        ]),
        ("Schedule and cost", [
            Panel("lr", "Learning rate", "of the policy", (Mark("lr", "rate"),), from_zero=True),
            Panel("seconds", "Time by phase", "seconds per step", (
                Mark("seconds_sample", "sample", kind="area"), Mark("seconds_reward", "reward", "purple", "area"),
                Mark("seconds_score", "score", "green", "area"), Mark("seconds_train", "train", "orange", "area")),
                from_zero=True),
            Panel("throughput", "Throughput by phase", "tokens per second", (
                Mark("sample_tokens_per_second", "sample"), Mark("score_tokens_per_second", "score", "green"),
                Mark("train_tokens_per_second", "train", "orange")), from_zero=True, may_be_log=True),
        ]),
    ]
    # fmt: on
