"""What the learner asks of an objective: the loss of each micro-batch of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from fastflow.config.schema import Config
from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel


@dataclass(frozen=True)
class Evidence:
    """What is known about n trajectories before the policy's head runs; float64.

    length: (n,) response tokens |y|. base_logprob: (n,) log p_base(y), nats. penalty: (n,) psi, nats per token, 0 or
    negative. reward: (n,) reward, normalised within the group; zeros where there is none.
    """

    length: torch.Tensor
    base_logprob: torch.Tensor
    penalty: torch.Tensor
    reward: torch.Tensor


@dataclass(frozen=True)
class Facts(Evidence):
    """The same of all trajectories of an update, in flat order on the policy's device.

    group: (n,) int64, the group of each. behaviour_logprob: (n,) float64 log pi_old(y), nats.
    """

    group: torch.Tensor
    behaviour_logprob: torch.Tensor


class MicrobatchLoss(NamedTuple):
    """The loss of a micro-batch of S sequences with N response tokens, and what the metrics say of it.

    loss: scalar, to be backpropagated once; those of an update's micro-batches add up to its loss. token_logprob: (N,)
    under the policy. logprob: (S,) nats per response. residual, log_z: (S,). weight, raw_ratio: (S,) importance weight,
    clipped and raw. All but `loss` carry no gradient.
    """

    loss: torch.Tensor
    token_logprob: torch.Tensor
    logprob: torch.Tensor
    residual: torch.Tensor
    log_z: torch.Tensor
    weight: torch.Tensor
    raw_ratio: torch.Tensor


LossOfMicrobatch = Callable[[torch.Tensor, PackedBatch], MicrobatchLoss]  # hidden (T, D) of the policy, its batch


class Objective(Protocol):
    """Turns what is known of trajectories into losses. The learner packs, scores, backpropagates and steps."""

    @property
    def log_z_head(self) -> torch.nn.Module | None:
        """The network that is trained beside the policy and saved with it, or None."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained beside the policy, at `optim.log_z_lr`."""

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """Settle all that concerns the whole update. Returns the loss of one of its micro-batches."""


MakeObjective = Callable[[Config, PackedModel], Objective]  # from the settings and the policy that will be trained
