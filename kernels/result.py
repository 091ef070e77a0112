"""What `flow_loss` returns."""

from typing import NamedTuple

from torch import Tensor


class FlowLoss(NamedTuple):
    """Float64 for float64 inputs, else float32. Only `loss` carries gradient."""

    loss: Tensor  # () the sum over sequences, divided by the normaliser
    logprob: Tensor  # (S,) log pi of the sequence, nats
    residual: Tensor  # (S,)
    weight: Tensor  # (S,) the clipped ratio
    raw_ratio: Tensor  # (S,) the ratio before clipping
    token_logprob: Tensor  # (N,) log pi of each row, nats
