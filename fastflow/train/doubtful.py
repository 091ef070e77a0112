"""Settings that are allowed and probably not meant: said before a run, and by its plan."""

from __future__ import annotations

from fastflow.config.methods import ANSWER, WITHOUT_ALPHA
from fastflow.config.schema import Config, ObjectiveConfig

SMALL = 1e-5  # a learning rate


def doubtful(config: Config) -> list[str]:
    """Say in a sentence each what is doubtful about the settings of a run."""
    warnings = vanishing(config)
    if config.lora.rank and config.optim.lr < SMALL:
        warnings.append(f"optim.lr = {config.optim.lr:g} hardly moves LoRA adapters; 1e-5 to 1e-4 is usual")
    alpha, name = config.objective.alpha, config.objective.name
    if name in WITHOUT_ALPHA and alpha != ObjectiveConfig().alpha:
        warnings.append(f"objective.alpha = {alpha:g} is not read by objective.name = {name}")
    warnings += _unread_answers(config.objective)
    sharpens = name not in WITHOUT_ALPHA and alpha > 1
    if sharpens and config.objective.format_pattern is None and config.objective.format_check is None:
        warnings.append("alpha above 1 without objective.format_pattern can drift into repetition; watch the alarms")
    if config.eval.tasks and not config.eval.every:
        warnings.append("eval.tasks is set and eval.every = 0, so that nothing is evaluated")
    return warnings


def vanishing(config: Config) -> list[str]:
    """Say where updates would be lost in the type of the parameters, whose memory looks tempting."""
    if config.model.dtype != "bfloat16" or config.lora.rank or config.optim.lr >= SMALL:
        return []
    return [
        f"updates of optim.lr = {config.optim.lr:g} vanish in bfloat16 parameters; keep model.dtype = float32 and set "
        "model.autocast = true instead"
    ]


def _unread_answers(objective: ObjectiveConfig) -> list[str]:
    """Settings of answers where none is compared: by the method, or with the record's."""
    usual, unread = ObjectiveConfig(), []
    if objective.grader != usual.grader and not objective.compares_answers:
        unread.append(f"objective.grader = {objective.grader} is not read, since {objective.name} compares no answers")
    if objective.answer_field != usual.answer_field and objective.reward != ANSWER:
        unread.append(f"objective.answer_field = {objective.answer_field} is read with objective.reward = answer alone")
    return unread
