"""What one update saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class UpdateResult:
    """What one update saw; per-trajectory tensors are (n,) float64 on the host, in the order of `flatten(groups)`.

    length: response tokens. group: index of the group. logprob, base_logprob, behaviour_logprob: nats per response.
    residual, log_z: nats per token (per response for the tb_* objectives). weight, raw_ratio: importance weight,
    clipped and raw. token_logprobs, base_token_logprobs: one (|y|,) array per trajectory. tokens: packed tokens.
    seconds: wall-clock of the phases score and train.
    """

    loss: float
    grad_norm: float
    lr: float
    length: torch.Tensor
    group: torch.Tensor
    logprob: torch.Tensor
    base_logprob: torch.Tensor
    behaviour_logprob: torch.Tensor
    residual: torch.Tensor
    log_z: torch.Tensor
    weight: torch.Tensor
    raw_ratio: torch.Tensor
    token_logprobs: list[np.ndarray]
    base_token_logprobs: list[np.ndarray]
    microbatches: int
    tokens: int
    seconds: dict[str, float]
