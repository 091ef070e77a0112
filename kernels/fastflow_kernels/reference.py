"""The two ops in plain, differentiable PyTorch: what they return, what they mean, and what the tests compare with.

Everything is computed in the type of `hidden` (half precision is raised to float32); the (N, V) logits are
materialised, and every output carries gradient. Pass float64 for an oracle.
"""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["FlowLoss", "TokenStatistics", "flow_loss", "linear_logprob"]


class TokenStatistics(NamedTuple):
    """Of the distribution softmax(logits / temperature) that each row gives, over the whole vocabulary; in nats.

    Float64 for float64 inputs, else float32.
    """

    entropy: Float[Tensor, " N"]  # -sum_v p_v log p_v, at least 0
    logsumexp: Float[Tensor, " N"]  # log sum_v exp(logit_v), the logits after bias, soft-cap and temperature
    mean_logit: Float[Tensor, " N"]  # their mean; logsumexp - mean_logit - log V is KL(uniform || p)

    def rows(self, rows: slice) -> "TokenStatistics":
        """Views of these rows."""
        return TokenStatistics(*(values[rows] for values in self))

    @classmethod
    def empty(cls, row_count: int | torch.SymInt, like: Tensor, dtype: torch.dtype) -> "TokenStatistics":
        """To be filled in."""
        return cls(*(like.new_empty(row_count, dtype=dtype) for _ in cls._fields))


class FlowLoss(NamedTuple):
    """Float64 for float64 inputs, else float32. Only `loss` carries gradient."""

    loss: Float[Tensor, ""]  # the sum over sequences, divided by the normaliser
    logprob: Float[Tensor, " S"]  # log pi of the sequence, nats
    residual: Float[Tensor, " S"]
    importance: Float[Tensor, " S"]  # the clipped ratio
    raw_ratio: Float[Tensor, " S"]  # the same before clipping
    token_logprob: Float[Tensor, " N"]  # log pi of each row, nats


def linear_logprob(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
    statistics: bool = False,
) -> Float[Tensor, " N"] | tuple[Float[Tensor, " N"], TokenStatistics]:
    """State `fastflow_kernels.linear_logprob` in plain PyTorch; the arguments are those of the op."""
    logits = _logits(hidden, weight, bias, temperature, softcap, vocabulary)
    every_logprob = torch.log_softmax(logits, dim=1)
    logprob = _at(targets, every_logprob)
    return (logprob, _token_statistics(logits, every_logprob)) if statistics else logprob


def flow_loss(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    cu_seqlens: Int[Tensor, " offsets"],  # S + 1 of them
    *,
    log_z: Float[Tensor, " S"],
    log_target: Float[Tensor, " S"],
    length_scale: Float[Tensor, " S"],
    behaviour_logprob: Float[Tensor, " S"],
    clip_low: float,
    clip_high: float,
    ratio: str = "sequence",
    normaliser: float,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    vocabulary: int | None = None,
    statistics: bool = False,
) -> FlowLoss | tuple[FlowLoss, TokenStatistics]:
    """State `fastflow_kernels.flow_loss` in plain PyTorch: the same formulas, one line each."""
    logits = _logits(hidden, weight, bias, temperature, softcap, vocabulary)
    every_logprob = torch.log_softmax(logits, dim=1)
    token_logprob = _at(targets, every_logprob)
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
    return (result, _token_statistics(logits, every_logprob)) if statistics else result


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocabulary: int | None,
) -> Tensor:
    """(N, V), after bias, soft-cap and temperature."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits[:, :vocabulary]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def _at(targets: Tensor, values: Tensor) -> Tensor:
    """(N,) of (N, V)."""
    return values.gather(1, targets.long().unsqueeze(1)).squeeze(1)


def _token_statistics(logits: Tensor, logprob: Tensor) -> TokenStatistics:
    """(N, V), (N, V) -> (N,) each; p log p is 0 where p is."""
    surprise = -logprob.masked_fill(logprob == -torch.inf, 0.0)
    entropy = (logprob.exp() * surprise).sum(dim=1)
    return TokenStatistics(entropy, logits.logsumexp(dim=1), logits.mean(dim=1))
