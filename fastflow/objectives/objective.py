"""The seam between learner and objective: the learner asks for the loss of each micro-batch of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fastflow.config.schema import Config
from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel
from fastflow.objectives.known_tokens import KnownTokens


@dataclass(frozen=True)
class Evidence:
    """What is known about n trajectories before the policy's head runs.

    length: response tokens |y|. base_logprob: log p_base(y), nats. penalty: psi, nats, 0 or negative.
    reward: what the texts decide, see Judgement; zeros where there is none.
    """

    length: Float64[Tensor, " n"]
    base_logprob: Float64[Tensor, " n"]
    penalty: Float64[Tensor, " n"]
    reward: Float64[Tensor, " n"]


@dataclass(frozen=True)
class Facts(Evidence):
    """The same about all trajectories of an update, in flat order on the policy's device.

    group: the group of each. behaviour_logprob: log pi_old(y), nats. known_tokens: gives what is known of each token.
    left_out: of the loss, since it was cut at the length limit and objective.truncated = drop; others are compared with
    its reward all the same.
    """

    group: Int64[Tensor, " n"]
    behaviour_logprob: Float64[Tensor, " n"]
    known_tokens: Callable[[], KnownTokens]
    left_out: Bool[Tensor, " n"]


@dataclass(frozen=True)
class MicrobatchLoss:
    """The loss of a micro-batch of S sequences with N response tokens, and what the metrics need.

    loss: backpropagated once; the losses of an update's micro-batches add up to its loss. token_logprob: under the
    policy. logprob: nats per response. importance, raw_ratio: importance weight, clipped and raw. Only `loss` carries
    gradient.
    """

    loss: Float[Tensor, ""]
    token_logprob: Float[Tensor, " N"]
    logprob: Float[Tensor, " S"]
    residual: Float[Tensor, " S"]
    log_z: Float[Tensor, " S"]
    importance: Float[Tensor, " S"]
    raw_ratio: Float[Tensor, " S"]


LossOfMicrobatch = Callable[[Float[Tensor, "T D"], PackedBatch], MicrobatchLoss]  # hidden states of the policy


class Objective(Protocol):
    """Turns facts about trajectories into losses. The learner packs, scores, backpropagates and steps.

    With objective.truncated = drop it gets no response that was cut. One whose attribute `compares_left_out` is true
    gets them all, and gives those of `Facts.left_out` no part in the loss. One whose attribute `least_of_group` is 2
    gets no group either of which a single response is left, unless the update has no other.
    """

    @property
    def log_z_head(self) -> torch.nn.Module | None:
        """The network that is trained beside the policy and saved with it, or None."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained beside the policy, at `optim.log_z_lr`."""

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Compute what concerns the whole update. Returns a function for the loss of each of its micro-batches."""


MakeObjective = Callable[[Config, PackedModel], Objective]  # from the settings and the policy that will be trained
