"""The two ops in plain, differentiable PyTorch: what they mean, and what the tests compare with.

Everything is computed in the type of `hidden` (half precision is raised to float32); the (N, V) logits are
materialised, and every output carries gradient. Pass float64 for an oracle.
"""

import itertools

import torch
from torch import Tensor

from fastflow_kernels.result import FlowLoss, TokenStatistics


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
