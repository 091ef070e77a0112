"""Every setting of a training run: one tree of frozen dataclasses.

`fastflow.config.reader` takes values from the sections' defaults, a preset, a YAML file and the command line; a later
source overrides an earlier one. Settings that contradict each other are refused here.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

from fastflow.config.compared import SurrogateConfig, check_method, check_offline
from fastflow.config.sections import (
    GYM,
    BatchConfig,
    DataConfig,
    EvalConfig,
    ImportanceConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from fastflow.config.setting import Section
from fastflow.errors import FastflowError

__all__ = [
    "BatchConfig", "Config", "DataConfig", "EvalConfig", "ImportanceConfig", "LoraConfig", "ModelConfig",
    "ObjectiveConfig", "OptimConfig", "RolloutConfig", "RunConfig", "Section", "SurrogateConfig", "sections",
]  # fmt: skip


EVALUATED = "eval/"  # how the names of an evaluation's metrics begin


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
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        batch, objective = self.batch, self.objective
        if batch.prompts_per_step % batch.updates_per_rollout:
            raise FastflowError(
                f"batch.prompts_per_step = {batch.prompts_per_step} does not split into batch.updates_per_rollout = "
                f"{batch.updates_per_rollout} equal shares; make it a multiple"
            )
        if objective.log_z == "group_mean" and batch.responses_per_prompt < 2:
            raise FastflowError("objective.log_z = group_mean needs batch.responses_per_prompt of 2 or more, not 1")
        check_offline(self)
        self._check_rollout()
        self._check_eval()
        if objective.format_pattern is not None and objective.format_check is not None:
            raise FastflowError("objective.format_pattern and objective.format_check are both set; keep one of them")
        check_method(self)
        for name in ("system", "template_arguments"):
            if getattr(self.data, name) is not None and not self.data.chat_template:
                raise FastflowError(
                    f"data.{name} is set but data.chat_template is off; switch the template on or drop data.{name}"
                )
        if self.data.gym is not None and not self.data.path.startswith(GYM):
            raise FastflowError(
                f"data.gym is set but data.path = {self.data.path!r} names no data set of reasoning-gym; write "
                "data.path = gym:NAME, or drop data.gym"
            )
        if self.model.fused_layers == "liger" and self.model.compile == "layers":
            raise FastflowError(
                "model.fused_layers = liger and model.compile = layers both replace the decoder layers' own code; keep "
                "one of them"
            )
        if self.lora.rank and self.model.base is not None:
            raise FastflowError(
                "model.base and lora.rank are both set; with LoRA the base is the policy without its adapters"
            )

    def _check_rollout(self) -> None:
        rollout = self.rollout
        if not rollout.samples_the_policy and self.importance.source == "rollout":
            raise FastflowError(
                "rollout.temperature and rollout.top_p other than 1, and rollout.min_response_tokens, sample from a "
                "different distribution than the policy, but the loss needs the policy's log-probs; set "
                "importance.source = recompute"
            )
        if rollout.min_response_tokens > rollout.max_response_tokens:
            raise FastflowError(
                f"rollout.min_response_tokens = {rollout.min_response_tokens} is over rollout.max_response_tokens = "
                f"{rollout.max_response_tokens}; lower the first or raise the second"
            )
        if any(not text for text in rollout.stop):
            raise FastflowError("rollout.stop holds an empty text, which would end every response at once; remove it")
        if rollout.ahead and rollout.engine == "local":
            raise FastflowError(
                "rollout.ahead = 1 needs a sampler with weights of its own: set rollout.engine = vllm or vllm-server"
            )
        if rollout.ahead and self.importance.source == "recompute":
            raise FastflowError(
                "rollout.ahead = 1 and importance.source = recompute contradict each other: the weights that sampled a "
                "response are gone before its log-probs could be recomputed; set importance.source = rollout"
            )
        if rollout.ahead and rollout.sleep not in ("auto", "off"):
            raise FastflowError(
                "rollout.ahead = 1 samples while the policy trains, so vLLM cannot sleep; set rollout.sleep = "
                f"off, not {rollout.sleep}"
            )
        if rollout.engine == "vllm-server" and not rollout.servers:
            raise FastflowError(
                "rollout.engine = vllm-server needs rollout.servers, a list of addresses such as [localhost:8000]"
            )

    def _check_eval(self) -> None:
        evaluation, best = self.eval, self.run.best_metric or ""
        if evaluation.every and not evaluation.tasks:
            raise FastflowError(
                f"eval.every = {evaluation.every} needs eval.tasks, a list of tasks such as [math500], or of JSONL "
                "files with `prompt` and `answer`"
            )
        if evaluation.temperature == 0 and evaluation.samples > 1:
            raise FastflowError(
                f"eval.temperature = 0 gives {evaluation.samples} equal responses; set eval.samples = 1"
            )
        limit = evaluation.max_response_tokens or self.rollout.max_response_tokens
        if self.rollout.min_response_tokens > limit:
            raise FastflowError(
                f"rollout.min_response_tokens = {self.rollout.min_response_tokens} is over eval.max_response_tokens = "
                f"{limit}; lower the first or raise the second"
            )
        if best.startswith(EVALUATED) and not evaluation.every:
            raise FastflowError(f"run.best_metric = {best} is an evaluation's, and eval.every = 0 makes none; set it")
        if evaluation.patience and not (evaluation.every and best.startswith(EVALUATED)):
            raise FastflowError(
                f"eval.patience = {evaluation.patience} compares evaluations; set eval.every, and run.best_metric to "
                f"an evaluation's metric such as {EVALUATED}math500/avg@{evaluation.samples}"
            )

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
