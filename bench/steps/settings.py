"""What all contestants share: the workload, the precision, the trainer's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from bench.steps.clock import PhaseClock
from fastflow.config.schema import BatchConfig, Config, ImportanceConfig, ModelConfig, ObjectiveConfig, OptimConfig
from fastflow.data.trajectory import Group

PRECISIONS = ("float32", "mixed", "bfloat16")


@dataclass(frozen=True)
class StepSettings:
    """precision: "mixed" is float32 parameters under bfloat16 autocast, the others are the parameters' type.

    ours: settings of the trainer's section `model` that only our own contestant takes.
    """

    checkpoint: Path
    device: torch.device
    precision: str
    tokens_per_microbatch: int  # token slots of one forward pass, padding included
    gradient_checkpointing: bool = False
    ours: Mapping[str, object] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.precision == "bfloat16" else "float32"

    @property
    def autocast(self) -> bool:
        return self.precision == "mixed"

    @property
    def config(self) -> Config:
        """The trainer's configuration: its defaults but for what random weights need.

        The ratio is the mean per token: of a whole response, that of the sequence would turn the rounding of
        bfloat16 logits into weights that differ by a fifth, and losses could not be compared.
        """
        return Config(
            model=ModelConfig(
                path=str(self.checkpoint),
                device=str(self.device),
                dtype=self.dtype,
                autocast=self.autocast,
                checkpoint_share=float(self.gradient_checkpointing),
                **self.ours,
            ),
            objective=ObjectiveConfig(log_z="group_mean"),
            importance=ImportanceConfig(ratio="token_mean"),
            batch=BatchConfig(tokens_per_microbatch=self.tokens_per_microbatch),
            optim=OptimConfig(max_skips=0),
        )


class Outcome(NamedTuple):
    """What one update found. slots: tokens that went through the policy, padding included."""

    loss: float
    grad_norm: float
    slots: int
    microbatches: int


class Contestant(Protocol):
    """Policy, base and optimiser in memory."""

    note: str

    def update(self, groups: Sequence[Group], clock: PhaseClock) -> Outcome:
        """One whole update; the clock has been started."""

    def slots(self, groups: Sequence[Group]) -> int:
        """Tokens that an update would send through the policy, padding included."""
