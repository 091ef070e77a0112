"""Early warnings: the ways in which sharpening is known to go wrong, seen in a step's metrics."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config

MISMATCH_KL = 0.01  # nats per token; bfloat16 on both sides gives 0.0005
RATIO = 10.0  # pi / pi_old; a few updates of a rollout stay below 2
AT_THE_LIMIT = MALFORMED = 0.95  # shares of which hardly any response is left
LOG_Z_ROOM = 10.0  # nats per token beside twice its first value, in which log_z moves as the policy sharpens
REMEMBERED = ("length_mean", "truncated_share", "repetition", "log_z")  # of the first step that has them
OF_UPDATES = (  # need one that was done
    "stale rollouts", "sampler mismatch", "exploding ratios", "runaway log_z", "no signal",
)  # fmt: skip

NEED_A_ROLLOUT = (  # which say something of the policy only where it has sampled the responses
    "length collapse", "length explosion", "truncation", "repetition", "stale rollouts", "sampler mismatch",
    "saturated length", "exploding ratios", "runaway log_z", "dead format", "no signal",
)  # fmt: skip

Condition = tuple[str, bool, str]  # name, whether it holds, what is said


def alarms_off(config: Config) -> tuple[str, ...]:
    """Those that make no sense under these settings, by name."""
    return NEED_A_ROLLOUT if config.objective.name in OFFLINE else ()


class Alarms:
    """Compares each step with the first and names what looks like collapse; an alarm that persists is not repeated.

    off: names of those that are never raised.
    """

    def __init__(self, off: Collection[str] = ()) -> None:
        self._off = set(off)
        self._first: dict[str, Any] | None = None
        self._active: set[str] = set()

    def check(self, metrics: dict[str, Any]) -> list[str]:
        """New alarms of this step, each a sentence with figures and a remedy."""
        known = {name: metrics[name] for name in REMEMBERED if math.isfinite(metrics[name])}
        self._first = known | (self._first or {})
        raised = {
            name: message
            for name, holds, message in _conditions(metrics, self._first)
            if holds and name not in self._off
        }
        unseen = set() if math.isfinite(metrics["loss"]) else set(OF_UPDATES)  # every update was skipped
        new = [message for name, message in raised.items() if name not in self._active | unseen]
        self._active = (set(raised) - unseen) | (self._active & unseen)
        return new

    def state(self) -> dict[str, Any]:
        """What they remember, for `load_state` of a resumed run."""
        return {"first": self._first, "active": sorted(self._active)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._first, self._active = state["first"], set(state["active"])


def _conditions(now: dict[str, Any], first: dict[str, Any]) -> list[Condition]:
    length, first_length = now["length_mean"], first["length_mean"]
    return [
        (
            "length collapse",
            length < 0.5 * first_length,
            f"length collapse: mean {length:.1f} tokens, {first_length:.1f} at the start; use "
            "objective.name = powerflow, a format penalty, or a lower optim.lr",
        ),
        (
            "length explosion",
            length > 2 * first_length,
            f"length explosion: mean {length:.1f} tokens, {first_length:.1f} at the start; set "
            "objective.format_pattern or lower optim.lr",
        ),
        (
            "truncation",
            now["truncated_share"] > max(0.1, 2 * first["truncated_share"]),
            f"truncation: {now['truncated_share']:.0%} of the responses hit the length limit, "
            f"{first['truncated_share']:.0%} at the start; raise "
            "rollout.max_response_tokens or set objective.format_pattern",
        ),
        (
            "repetition",
            now["repetition"] > max(0.2, 2 * first["repetition"]),
            f"repetition: {now['repetition']:.0%} of 4-grams repeat, {first['repetition']:.0%} at the start; set "
            "objective.format_pattern or lower objective.alpha",
        ),
        (
            "stale rollouts",
            not now["effective_sample_size"] >= 0.3,  # NaN: every ratio under- or overflowed
            f"stale rollouts: effective sample size {now['effective_sample_size']:.0%}; lower "
            "batch.updates_per_rollout or optim.lr",
        ),
        _mismatch(now),
        (
            "saturated length",
            now["truncated_share"] >= AT_THE_LIMIT,
            f"saturated length: {now['truncated_share']:.0%} of the responses are cut at the length limit, so that "
            "hardly any shows an end; raise rollout.max_response_tokens, or check with rollout.stop and the prompts' "
            "template (data.chat_template) that the model can end",
        ),
        (
            "no signal",
            now["residual_mean"] == 0 and now["residual_std"] == 0,
            "no signal: the residual, or advantage, of every response is 0, as where all rewards of a group are equal, "
            "and the step taught nothing; read samples: are answers found (objective.grader, data.suffix), and do "
            "rewards differ? Otherwise raise batch.responses_per_prompt, or take other prompts",
        ),
        (
            "exploding ratios",
            not now["ratio_p99"] <= RATIO,  # NaN: some ratio overflowed
            f"exploding ratios: pi / pi_old is above {now['ratio_p99']:.1f} in 1% of the responses; lower "
            "batch.updates_per_rollout or optim.lr, or set importance.ratio = token_mean",
        ),
        _runaway_log_z(now["log_z"], first.get("log_z", now["log_z"])),
        _dead_format(now["malformed_share"]),
        (
            "skipped updates",
            now["skipped_updates"] > 0,
            f"skipped updates: {now['skipped_updates']} in this step and {now['skipped_updates_total']} in the run, "
            "whose loss or gradient was not finite; look into their batches in the run's folder bad with fastflow "
            "replay, and lower optim.lr or optim.max_grad_norm",
        ),
    ]


def _runaway_log_z(now: float, first: float) -> Condition:
    return (
        "runaway log_z",
        not abs(now - first) <= LOG_Z_ROOM + 2 * abs(first),
        f"runaway log_z: {now:.1f}, {first:.1f} at the start; lower optim.log_z_lr or set objective.log_z = "
        "group_mean, and read samples: the base may find the responses very unlikely",
    )


def _dead_format(malformed: float | None) -> Condition:
    if malformed is None:
        return "dead format", False, ""
    return (
        "dead format",
        malformed >= MALFORMED,
        f"dead format: {malformed:.0%} of the responses are malformed, and a penalty that nearly all of them get "
        "teaches nothing; ask for the format in data.suffix, or loosen objective.format_pattern",
    )


def _mismatch(now: dict[str, Any]) -> Condition:
    """Only where the log-probs belong to the same weights and the same distribution."""
    if now["mismatch_kl"] is None or now["weight_lag"] > 0:
        return "sampler mismatch", False, ""
    return (
        "sampler mismatch",
        not now["mismatch_kl"] <= MISMATCH_KL,  # NaN
        f"sampler mismatch: the sampler's log-probs are {now['mismatch_mean']:.4f} nats from the trainer's on average, "
        f"{now['mismatch_p99']:.4f} at the 99th percentile (KL {now['mismatch_kl']:.4f} per token); set "
        "importance.source = recompute, or bring both to the same dtype",
    )
