"""What a sampler needs of a head: the logits of a few rows, and from logits the weights that it draws from.

Both by the products and the sweeps of the ops, so that a sampler's probabilities are those that training sees.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fastflow_kernels import row_sweeps
from fastflow_kernels.cpu import native
from fastflow_kernels.head import Head, factors_of
from fastflow_kernels.implementation import choose, running_on
from fastflow_kernels.matmul import accumulator_dtype, factor_dtype, project

__all__ = ["exponentials_", "head_logits"]


def head_logits(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, "N V"]:
    """Logits of a few rows of hidden states, all held in memory: hidden @ weight^T + bias, without gradient.

    Args:
        hidden: final hidden states, such as one for each sequence that is being sampled.
        weight: weight of the head. Its type may differ from that of hidden; they are multiplied in the narrower,
            whatever autocast says.
        bias: bias of the head.

    Returns:
        Float64 for float64 inputs, else float32. On CUDA they come from float32 accumulators; the products of a CPU in
        bfloat16 are rounded to it once.

    >>> head_logits(torch.tensor([[1.0, 2.0]]), torch.eye(2), bias=torch.tensor([0.0, 0.5]))
    tensor([[1.0000, 2.5000]])
    """
    with running_on(hidden.device):
        dtype = factor_dtype(hidden, weight)
        head = Head.of(factors_of(weight, dtype), bias)
        logits = project(hidden.detach().to(dtype).contiguous(), head.weight).to(accumulator_dtype(dtype))
        return logits if head.bias is None else logits.add_(head.bias)


def exponentials_(logits: Float[Tensor, "N V"], temperature: float = 1.0) -> Float[Tensor, "N V"]:
    """Turn logits into unnormalised probabilities exp((logit - largest of the row) / temperature), in place.

    Args:
        logits: float32 or float64; overwritten.
        temperature: divides the differences; above 0.

    Returns:
        The memory of `logits`. Values are from 0 to 1, which stands at the largest; one below 1e-38 may be 0. A row
        with a NaN, with +inf or with nothing but -inf becomes NaN.

    >>> exponentials_(torch.tensor([[3.0, 1.0, -torch.inf]]), temperature=2.0)
    tensor([[1.0000, 0.3679, 0.0000]])
    """
    library = native.library() if choose(logits.device, logits.dtype).name == "native" else None
    sweeps = row_sweeps if library is None or logits.stride(1) != 1 else library
    scale = 1.0 / temperature
    nobody = torch.full((logits.shape[0],), -1, device=logits.device)
    reference = sweeps.row_maximum(logits, None)
    sweeps.row_exponentials_(logits, None, softcap=None, scale=scale, reference=reference, columns=nobody, store=True)
    return logits
