"""The trajectory-balance family as an objective: one call of `flow_loss` for each micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from fastflow.config.schema import Config, ImportanceConfig, ObjectiveConfig
from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel
from fastflow.objectives.log_z import LearnedLogZ, LogZForm, group_mean
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MicrobatchLoss
from fastflow.objectives.trajectory_balance import OBJECTIVES


class FlowObjective:
    """PowerFlow and its relatives. log_z_head: the network of log_z; None where log_z is the group's mean."""

    def __init__(self, config: Config, policy: PackedModel):
        self._settings = config.objective
        self._importance = config.importance
        self.log_z_head = None
        if config.objective.log_z == "learned":
            form = LogZForm.of(config.released, config.objective.alpha)
            self.log_z_head = LearnedLogZ(policy.hidden_size, form).to(policy.device)

    @property
    def least_of_group(self) -> int:
        """Of a single response the group's mean is its own: its residual is 0 whatever it says."""
        return 2 if self.log_z_head is None else 1

    def parameters(self) -> list[torch.nn.Parameter]:
        return [] if self.log_z_head is None else list(self.log_z_head.parameters())

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Compute the known terms of every residual."""
        importance = self._importance
        clip_low, clip_high = clip_bounds(self._settings, importance)
        length_scale, log_target = OBJECTIVES[self._settings.name](facts, self._settings)
        log_z_of = self.log_z(facts, log_target - length_scale * facts.behaviour_logprob)

        def loss(hidden: Float[Tensor, "T D"], batch: PackedBatch) -> MicrobatchLoss:
            chosen = batch.sequences
            log_z = log_z_of(hidden, batch)
            output = policy.flow_loss(
                hidden[batch.rows],
                batch.targets,
                batch.response_cu_seqlens,
                log_z=log_z,
                log_target=log_target[chosen],
                length_scale=length_scale[chosen],
                behaviour_logprob=facts.behaviour_logprob[chosen],
                clip_low=clip_low,
                clip_high=clip_high,
                ratio=importance.ratio,
                normaliser=len(facts.length),
            )
            return MicrobatchLoss(**output._asdict(), log_z=log_z.detach())

        return loss

    def log_z(
        self, facts: Facts, negated_rest: Float64[Tensor, " n"]
    ) -> Callable[[Float[Tensor, "T D"], PackedBatch], Float32[Tensor, " S"]]:
        """Make what gives the log_z of a batch's sequences. Starts a learned one at the first update's optimum.

        negated_rest: log_target - length_scale * log pi_old of each trajectory.
        """
        optimum, head = group_mean(negated_rest, facts.group), self.log_z_head
        if head is None:
            return lambda hidden, batch: optimum[batch.sequences].float()
        head.calibrate(optimum)
        seeds = facts.known_tokens().seeds if head.form.dropout else None
        return lambda hidden, batch: head(hidden, batch, None if seeds is None else seeds[batch.sequences])


def clip_bounds(settings: ObjectiveConfig, importance: ImportanceConfig) -> tuple[float, float]:
    """How far the importance weight may be below and above 1: as set, but as FlowRL's code has it where that is chosen.

    Its first release computes the clipped weight and multiplies by the other one; its later recipe cuts it at 10.
    """
    if settings.name != "flowrl" or settings.flowrl_form == "paper":
        return importance.clip_low, importance.clip_high
    return 1.0, math.inf if settings.flowrl_form == "release" else 9.0
