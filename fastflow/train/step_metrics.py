"""What a step of training is measured by: its rollout, its updates, and how far sampler and trainer are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastflow.config.methods import OFFLINE, SLOPE_IS_ALPHA
from fastflow.config.schema import Config
from fastflow.run.metrics import agreement, measure
from fastflow.train.learner import Learner
from fastflow.train.state import UnderWay
from fastflow.train.updates import Update, first_done


def measure_step(
    config: Config,
    learner: Learner,
    done: UnderWay,
    updates: Sequence[Update],
    *,
    sample: float,
    total: float,
) -> dict[str, Any]:
    """The metrics of one step. A collective.

    done: the step. sample, total: seconds of the sampling, and of the whole step.
    """
    judgements = [update.trained.judgement for update in updates]
    of_all = [update.judged.judgement for update in updates]
    objective, offline = config.objective, config.objective.name in OFFLINE
    drawn_from_it = config.rollout.samples_the_policy and not offline
    seconds = {"sample": sample, "total": total, "reward": sum(judgement.seconds for judgement in judgements)}
    metrics = measure(
        done.groups,
        [update.result for update in updates],
        judged=[group for update in updates for group in update.judged.groups],
        well_formed=[fine for judgement in of_all for fine in judgement.well_formed or ()] or None,
        scores=[score for judgement in of_all for score in judgement.scores or ()] or None,
        penalties=[judgement.penalty for judgement in judgements],
        alpha=objective.alpha if objective.name in SLOPE_IS_ALPHA else None,
        samples_the_policy=drawn_from_it,
        seconds=seconds,
        device=learner.policy.device,
    )
    shown = first_done(updates)
    metrics |= agreement(shown.trained.groups, shown.result, version=done.version, samples_the_policy=drawn_from_it)
    if offline:
        metrics["weight_lag"] = None  # no weights of this run sampled
    metrics["skipped_updates_total"] = learner.skips.total
    metrics["peak_memory_bytes"] = learner.policy.ranks.max(metrics["peak_memory_bytes"])
    return metrics
