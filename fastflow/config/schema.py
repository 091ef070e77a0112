"""Every setting of a training run: one tree of frozen dataclasses.

`fastflow.config.reader` takes values from the sections' defaults, a preset, a YAML file and the command line; a later
source overrides an earlier one.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

from fastflow.config import contradictions
from fastflow.config.loss_sections import ImportanceConfig, ObjectiveConfig, SurrogateConfig
from fastflow.config.methods import OFFLINE
from fastflow.config.model_sections import LoraConfig, ModelConfig
from fastflow.config.released import ReleasedConfig
from fastflow.config.sections import (
    BatchConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from fastflow.config.setting import Section
from fastflow.errors import FastflowError

__all__ = [
    "BatchConfig", "Config", "DataConfig", "EvalConfig", "ImportanceConfig", "LoraConfig", "ModelConfig",
    "ObjectiveConfig", "OptimConfig", "ReleasedConfig", "RolloutConfig", "RunConfig", "Section",
    "SurrogateConfig", "sections",
]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The whole configuration. Raises FastflowError for settings that contradict each other."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        contradictions.check_batch(self.batch, self.objective)
        contradictions.check_offline(self.objective, self.data, self.rollout, self.importance, self.model, self.eval)
        contradictions.check_rollout(self.rollout, self.importance)
        contradictions.check_evaluation(self.eval, self.run, self.rollout)
        contradictions.check_method(self.objective, self.surrogate, self.importance, self.batch)
        contradictions.check_base(self.model, self.objective, self.surrogate)
        contradictions.check_released(self.released, self.objective, self.optim)
        contradictions.check_data(self.data)
        contradictions.check_models(self.model, self.lora)

    @property
    def reads_base(self) -> bool:
        """Whether the frozen base is loaded and scores every response."""
        if self.objective.name in OFFLINE:
            return False
        return self.surrogate.score_base or contradictions.needs_base(self.objective, self.surrogate)

    def require_inputs(self) -> None:
        """Raise FastflowError where model.path or data.path is not set."""
        for name, value in (("model.path", self.model.path), ("data.path", self.data.path)):
            if not value:
                raise FastflowError(
                    f"{name} is not set; give --{name} or choose a --preset (see fastflow train --help)"
                )


def sections() -> dict[str, type[Section]]:
    """Return the class of each section of Config by its name, in order."""
    return typing.get_type_hints(Config)
