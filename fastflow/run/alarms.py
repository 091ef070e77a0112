"""Early warnings: the ways in which sharpening is known to go wrong, seen in a step's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISMATCH_KL = 0.01  # nats per token; bfloat16 on both sides gives 0.0005
REMEMBERED = ("length_mean", "truncated_share", "repetition")  # of the first step


class Alarms:
    """Compares each step with the first and names what looks like collapse; an alarm that persists is not repeated."""

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None
        self._active: set[str] = set()

    def check(self, metrics: dict[str, Any]) -> list[str]:
        """New alarms of this step, each a sentence with figures and a remedy."""
        self._first = self._first or {name: metrics[name] for name in REMEMBERED}
        raised = {name: message for name, holds, message in _conditions(metrics, self._first) if holds}
        new = [message for name, message in raised.items() if name not in self._active]
        self._active = set(raised)
        return new

    def state(self) -> dict[str, Any]:
        """What they remember, for `load_state` of a resumed run."""
        return {"first": self._first, "active": sorted(self._active)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._first, self._active = state["first"], set(state["active"])


def _conditions(now: dict[str, Any], first: dict[str, Any]) -> list[tuple[str, bool, str]]:
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
    ]


def _mismatch(now: dict[str, Any]) -> tuple[str, bool, str]:
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
