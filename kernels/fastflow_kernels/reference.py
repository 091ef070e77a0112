"""The two ops in plain, differentiable PyTorch: what they mean, and what the tests compare with.

Everything is computed in the type of `hidden` (half precision is raised to float32); the (N, V) logits are
materialised, and every output carries gradient. Pass float64 for an oracle.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FlowLoss", "TokenStatistics", "flow_loss", "linear_logprob"]


class TokenStatistics(NamedTuple):
    """Of the distribution softmax(logits / temperature) that each row gives, over the whole vocabulary; in nats.

    Float64 for float64 inputs, else float32.
    """

    entropy: Tensor  # (N,) -sum_v p_v log p_v, at least 0
    logsumexp: Tensor  # (N,) log sum_v exp(logit_v), the logits after bias, soft-cap and temperature
    mean_logit: Tensor  # (N,) their mean over the vocabulary; logsumexp - mean_logit - log V is KL(uniform || p)

    def rows(self, rows: slice) -> "TokenStatistics":
        """Views of these rows."""
        return TokenStatistics(*(values[rows] for values in self))

    @classmethod
    def empty(cls, row_count: int, like: Tensor, dtype: torch.dtype) -> "TokenStatistics":
        """To be filled in."""
        return cls(*(like.new_empty(row_count, dtype=dtype) for _ in cls._fields))


class FlowLoss(NamedTuple):
    """Float64 for float64 inputs, else float32. Only `loss` carries gradient."""

    loss: Tensor  # () the sum over sequences, divided by the normaliser
    logprob: Tensor  # (S,) log pi of the sequence, nats
    residual: Tensor  # (S,)
    weight: Tensor  # (S,) the clipped ratio
    raw_ratio: Tensor  # (S,) the ratio before clipping
    token_logprob: Tensor  # (N,) log pi of each row, nats


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
    statistics: bool = False,
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """See `fastflow_kernels.linear_logprob`: (N, D), (V, D), (N,) -> (N,)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits[:, :vocabulary]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    every_logprob = torch.log_softmax(logits, dim=1)
    logprob = every_logprob.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    return (logprob, _token_statistics(logits, every_logprob)) if statistics else logprob


def _token_statistics(logits: Tensor, logprob: Tensor) -> TokenStatistics:
    """(N, V), (N, V) -> (N,) each; p log p is 0 where p is."""
    surprise = -logprob.masked_fill(logprob == -torch.inf, 0.0)
    entropy = (logprob.exp() * surprise).sum(dim=1)
    return TokenStatistics(entropy, logits.logsumexp(dim=1), logits.mean(dim=1))


def flow_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    *,
    log_z: Tensor,
    log_target: Tensor,
    length_scale: Tensor,
    behaviour_logprob: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: str = "sequence",
    normaliser: float,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocabulary: int | None = None,
    statistics: bool = False,
) -> FlowLoss | tuple[FlowLoss, TokenStatistics]:
    """See `fastflow_kernels.flow_loss`: the same formulas, one line each."""
    head = {"temperature": temperature, "bias": bias, "softcap": softcap, "vocabulary": vocabulary}
    token_logprob = linear_logprob(hidden, weight, targets, **head)
    dtype = token_logprob.dtype
    boundaries = cu_seqlens.tolist()
    logprob = torch.stack(
        [token_logprob[start:stop].sum() for start, stop in itertools.pairwise(boundaries)] or [token_logprob.sum()]
    )[: len(boundaries) - 1]
    row_count = cu_seqlens.diff().to(logprob.device)
    is_empty = row_count == 0

    def known(values: Tensor) -> Tensor:
        """An empty sequence may hold inf or nan: replaced before it can turn a gradient into nan."""
        return torch.where(is_empty, torch.zeros_like(values), values).to(dtype)

    residual = known(log_z) + known(length_scale) * logprob - known(log_target)
    log_ratio = logprob - known(behaviour_logprob)
    if ratio == "token_mean":
        log_ratio = log_ratio / row_count.clamp(min=1)
    raw_ratio = log_ratio.exp()
    clipped_ratio = raw_ratio.clamp(1 - clip_low, 1 + clip_high).detach()
    loss = (clipped_ratio * residual.square()).sum() / normaliser
    result = FlowLoss(loss, logprob, residual, clipped_ratio, raw_ratio, token_logprob)
    return (result, linear_logprob(hidden, weight, targets, **head, statistics=True)[1]) if statistics else result
