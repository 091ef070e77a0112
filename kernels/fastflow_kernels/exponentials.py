"""Rows of logits to unnormalised probabilities, in place and by the sweeps of the ops: what a sampler draws from."""

import torch
from torch import Tensor

from fastflow_kernels import row_sweeps
from fastflow_kernels.cpu import native
from fastflow_kernels.implementation import choose


def exponentials_(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """exp((logit - largest of the row) / temperature), in the memory of `logits` (B, V), float32 or float64.

    From 0 to 1, which stands at the largest; one below 1e-38 may be 0. A row with a NaN, with +inf or with nothing but
    -inf becomes NaN.

    >>> exponentials_(torch.tensor([[3.0, 1.0, -torch.inf]]), temperature=2.0)
    tensor([[1.0000, 0.3679, 0.0000]])
    """
    is_for_native = choose(logits.device, logits.dtype).name == "native" and logits.stride(1) == 1
    sweeps = native.library() if is_for_native else row_sweeps
    scale = 1.0 / temperature
    nobody = torch.full((logits.shape[0],), -1, device=logits.device)
    reference = sweeps.row_maximum(logits, None)
    sweeps.row_exponentials_(logits, None, softcap=None, scale=scale, reference=reference, columns=nobody, store=True)
    return logits
