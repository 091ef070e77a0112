"""What one update saw, for metrics, alarms and samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class UpdateResult:
    """What one update saw of n trajectories, on the host, in the order of `flatten(groups)`.

    length: response tokens. group: index of the group. logprob, base_logprob, behaviour_logprob: nats per response.
    residual, log_z: nats per token (per response for the tb_* objectives). importance, raw_ratio: importance weight,
    clipped and raw. token_logprobs, base_token_logprobs: one array of |y| tokens per trajectory. tokens: packed tokens.
    seconds: wall-clock of the phases score and train. skipped: why no step was taken, where numbers were not finite;
    values that were not computed are NaN then.
    """

    loss: float
    grad_norm: float
    lr: float
    length: Float64[Tensor, " n"]
    group: Int64[Tensor, " n"]
    logprob: Float64[Tensor, " n"]
    base_logprob: Float64[Tensor, " n"]
    behaviour_logprob: Float64[Tensor, " n"]
    residual: Float64[Tensor, " n"]
    log_z: Float64[Tensor, " n"]
    importance: Float64[Tensor, " n"]
    raw_ratio: Float64[Tensor, " n"]
    token_logprobs: list[Float32[np.ndarray, " _"]]
    base_token_logprobs: list[Float32[np.ndarray, " _"]]
    microbatches: int
    tokens: int
    seconds: dict[str, float]
    skipped: str = ""
