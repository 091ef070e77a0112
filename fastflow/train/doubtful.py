"""Settings that are allowed and probably not meant: said before a run, by its dry run and by its plan."""

from __future__ import annotations

import logging

from fastflow.config.methods import OFFLINE, POLICY_GRADIENTS, TAKE_A_REWARD, WITHOUT_ALPHA
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.train.unread import unread

logger = logging.getLogger(__name__)

SMALL = 1e-5  # a learning rate


def warn_of_doubts(config: Config) -> None:
    for doubt in doubtful(config):
        logger.warning(doubt)


def doubtful(config: Config) -> list[str]:
    """Say in a sentence each what is doubtful about the settings of a run."""
    warnings = vanishing(config)
    if config.lora.rank and config.optim.lr < SMALL:
        warnings.append(f"optim.lr = {config.optim.lr:g} hardly moves LoRA adapters; 1e-5 to 1e-4 is usual")
    sharpens = config.objective.name not in WITHOUT_ALPHA and config.objective.alpha > 1
    if sharpens and config.objective.format_pattern is None and config.objective.format_check is None:
        warnings.append("alpha above 1 without objective.format_pattern can drift into repetition; watch the alarms")
    return warnings + _measured_alone(config) + _below_the_peak(config) + unread(config)


def vanishing(config: Config) -> list[str]:
    """Say where updates would be lost in the type of the parameters, whose memory looks tempting."""
    if config.model.dtype != "bfloat16" or config.lora.rank or config.optim.lr >= SMALL:
        return []
    return [
        f"updates of optim.lr = {config.optim.lr:g} vanish in bfloat16 parameters; keep model.dtype = float32 and set "
        "model.autocast = true instead"
    ]


def _measured_alone(config: Config) -> list[str]:
    """Say where a reward is no part of the loss."""
    name, reward = config.objective.name, config.objective.reward
    if reward is None or name in (*TAKE_A_REWARD, *POLICY_GRADIENTS, *OFFLINE):
        return []
    return [
        f"objective.reward = {reward} is measured, and objective.name = {name} does not train on it (an objective of "
        f"your own may); to train on it, set objective.name = {' or '.join(TAKE_A_REWARD)}"
    ]


def _below_the_peak(config: Config) -> list[str]:
    """Say where the learning rate is still rising at the end."""
    updates, warmup = config.run.steps * config.batch.updates_per_rollout, config.optim.warmup_updates
    if warmup < max(updates, 2):
        return []
    reached = "never reached" if warmup > updates else "reached in the last one alone"
    return [
        f"optim.warmup_updates = {warmup} takes all of the run's {counted(updates, 'update')}, so that optim.lr is "
        f"{reached}"
    ]
