"""What a plain bfloat16 head does: the measure for products that round their results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastflow_kernels import matmul, reference


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """reference.linear_logprob with logits in the type of the inputs, as transformers computes them."""
    logits = (hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t()))[:, :vocabulary].float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, dim=1).gather(1, targets.long().unsqueeze(1)).squeeze(1)


@contextlib.contextmanager
def eager_logits() -> Iterator[None]:
    """Inside, the reference's logits have the type of its inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "linear_logprob", linear_logprob)
        yield


@contextlib.contextmanager
def exact_logits() -> Iterator[None]:
    """Inside, the CPU counts as one without bfloat16 products: the head is raised to float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: False)
        yield
