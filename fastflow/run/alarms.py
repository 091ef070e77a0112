"""Early warnings: the ways in which sharpening is known to go wrong, seen in a step's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastflow.config.methods import OFFLINE, POLICY_GRADIENTS, WITHOUT_PENALTY
from fastflow.config.schema import Config
from fastflow.run import alarm_remedies as remedies

MISMATCH_KL = 0.01  # nats per token; bfloat16 on both sides gives 0.0005
RATIO = 10.0  # pi / pi_old; a few updates of a rollout stay below 2
AT_THE_LIMIT = MALFORMED = 0.95  # shares of which hardly any response is left
LOG_Z_ROOM = 10.0  # nats per token beside twice its first value, in which log_z moves as the policy sharpens
REMEMBERED = ("length_mean", "truncated_share", "repetition", "log_z")  # of the first step that has them

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Alarm:
    """What is watched: `when` and `figures` take the metrics of this step, and those REMEMBERED of the first.

    of_updates: needs an update that was done. of_rollout: says something only where the policy sampled the responses.
    """

    name: str
    when: Callable[[Metrics, Metrics], bool]
    figures: Callable[[Metrics, Metrics], str]
    remedy: Callable[[Config], str]
    of_updates: bool = False
    of_rollout: bool = True

    def says(self, now: Metrics, first: Metrics, config: Config) -> str:
        return f"{self.name}: {self.figures(now, first)}; {self.remedy(config)}"


def _runs_away(now: Metrics, first: Metrics) -> bool:
    if math.isnan(now["log_z"]) and math.isfinite(now["loss"]):
        return False  # an objective of the user's that has none
    start = first.get("log_z", now["log_z"])
    return not abs(now["log_z"] - start) <= LOG_Z_ROOM + 2 * abs(start)


def _disagree(now: Metrics, first: Metrics) -> bool:
    """Only where the log-probs belong to the same weights and the same distribution."""
    if now["mismatch_kl"] is None or now["weight_lag"] > 0:
        return False
    return not now["mismatch_kl"] <= MISMATCH_KL  # NaN


ALARMS = (
    Alarm(
        "length collapse",
        lambda now, first: now["length_mean"] < 0.5 * first["length_mean"],
        lambda now, first: f"mean {now['length_mean']:.1f} tokens, {first['length_mean']:.1f} at the start",
        remedies.collapsing_length,
    ),
    Alarm(
        "length explosion",
        lambda now, first: now["length_mean"] > 2 * first["length_mean"],
        lambda now, first: f"mean {now['length_mean']:.1f} tokens, {first['length_mean']:.1f} at the start",
        remedies.exploding_length,
    ),
    Alarm(
        "truncation",
        lambda now, first: now["truncated_share"] > max(0.1, 2 * first["truncated_share"]),
        lambda now, first: (
            f"{now['truncated_share']:.0%} of the responses hit the length limit, "
            f"{first['truncated_share']:.0%} at the start"
        ),
        remedies.truncation,
    ),
    Alarm(
        "repetition",
        lambda now, first: now["repetition"] > max(0.2, 2 * first["repetition"]),
        lambda now, first: f"{now['repetition']:.0%} of 4-grams repeat, {first['repetition']:.0%} at the start",
        remedies.repetition,
    ),
    Alarm(
        "stale rollouts",
        lambda now, _: not now["effective_sample_size"] >= 0.3,
        lambda now, _: (
            "importance ratios under- or overflowed"
            if math.isnan(now["effective_sample_size"])
            else f"effective sample size {now['effective_sample_size']:.0%}"
        ),
        remedies.stale,
        of_updates=True,
    ),
    Alarm(
        "sampler mismatch",
        _disagree,
        lambda now, _: (
            f"the sampler's log-probs are {now['mismatch_mean']:.4f} nats from the trainer's on average, "
            f"{now['mismatch_p99']:.4f} at the 99th percentile (KL {now['mismatch_kl']:.4f} per token)"
        ),
        remedies.mismatch,
        of_updates=True,
    ),
    Alarm(
        "saturated length",
        lambda now, _: now["truncated_share"] >= AT_THE_LIMIT,
        lambda now, _: (
            f"{now['truncated_share']:.0%} of the responses are cut at the length limit, so that hardly any "
            "shows an end"
        ),
        lambda _: (
            "raise rollout.max_response_tokens, or check with rollout.stop and the prompts' template "
            "(data.chat_template) that the model can end"
        ),
    ),
    Alarm(
        "no signal",
        lambda now, _: now["residual_mean"] == 0 and now["residual_std"] == 0,
        lambda now, _: (
            "the residual, or advantage, of every response is 0, as where all rewards of a group are equal, "
            "and the step taught nothing"
        ),
        remedies.no_signal,
        of_updates=True,
    ),
    Alarm(
        "exploding ratios",
        lambda now, _: not now["ratio_p99"] <= RATIO,  # NaN: some ratio overflowed
        lambda now, _: f"pi / pi_old is above {now['ratio_p99']:.1f} in 1% of the responses",
        remedies.exploding_ratios,
        of_updates=True,
    ),
    Alarm(
        "runaway log_z",
        _runs_away,
        lambda now, first: f"{now['log_z']:.1f}, {first.get('log_z', now['log_z']):.1f} at the start",
        remedies.runaway_log_z,
        of_updates=True,
    ),
    Alarm(
        "dead format",
        lambda now, _: now["malformed_share"] is not None and now["malformed_share"] >= MALFORMED,
        lambda now, _: (
            f"{now['malformed_share']:.0%} of the responses are malformed, and what nearly all have in "
            "common teaches nothing"
        ),
        remedies.dead_format,
    ),
    Alarm(
        "skipped updates",
        lambda now, _: now["skipped_updates"] > 0,
        lambda now, _: (
            f"{now['skipped_updates']} in this step and {now['skipped_updates_total']} in the run, "
            "without a loss and a gradient that are finite"
        ),
        remedies.skipped,
        of_rollout=False,
    ),
)


def watched(config: Config) -> tuple[Alarm, ...]:
    """The alarms that make sense under these settings."""
    name = config.objective.name
    off = {"runaway log_z"} if name in POLICY_GRADIENTS else set()  # whose metric log_z is the mean reward, which rises
    if name in WITHOUT_PENALTY and name != "format_reward":
        off.add("dead format")
    return tuple(alarm for alarm in ALARMS if alarm.name not in off and not (alarm.of_rollout and name in OFFLINE))


class Alarms:
    """Compares each step with the first and names what looks like collapse; an alarm that persists is not repeated.

    config: of the run, which decides what is watched, and the remedies.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._watched = watched(config)
        self._first: dict[str, Any] | None = None
        self._active: set[str] = set()

    def check(self, metrics: dict[str, Any]) -> list[str]:
        """New alarms of this step, each a sentence with figures and a remedy."""
        known = {name: metrics[name] for name in REMEMBERED if math.isfinite(metrics[name])}
        first = self._first = known | (self._first or {})
        raised = [alarm for alarm in self._watched if alarm.when(metrics, first)]
        skipped = not math.isfinite(metrics["loss"])  # every update
        unseen = {alarm.name for alarm in self._watched if alarm.of_updates and skipped}
        new = [alarm for alarm in raised if alarm.name not in self._active | unseen]
        self._active = ({alarm.name for alarm in raised} - unseen) | (self._active & unseen)
        return [alarm.says(metrics, first, self._config) for alarm in new]

    def state(self) -> dict[str, Any]:
        """What they remember, for `load_state` of a resumed run."""
        return {"first": self._first, "active": sorted(self._active)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._first, self._active = state["first"], set(state["active"])
