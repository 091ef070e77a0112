"""The objective that a run's settings name."""

from __future__ import annotations

from fastflow.config.methods import OFFLINE, POLICY_GRADIENTS
from fastflow.config.schema import Config
from fastflow.models.packed import PackedModel
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.likelihood import MaximumLikelihood
from fastflow.objectives.masked_flow import MaskedFlow
from fastflow.objectives.objective import Objective
from fastflow.objectives.policy_gradient import PolicyGradient


def make_objective(config: Config, policy: PackedModel) -> Objective:
    """Make the objective of `objective.name`: a member of the trajectory-balance family, a policy gradient, or
    maximum likelihood.
    """
    if config.objective.name in OFFLINE:
        return MaximumLikelihood(config, policy)
    if config.objective.name in POLICY_GRADIENTS:
        return PolicyGradient(config, policy)
    if config.released.token_mask:
        return MaskedFlow(config, policy)
    return FlowObjective(config, policy)
