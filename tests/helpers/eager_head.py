"""What a plain bfloat16 head does: the measure for products that round their results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastflow_kernels import matmul, reference


def rounded_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocabulary: int | None,
) -> Tensor:
    """The reference's logits, multiplied in the type of the inputs, as transformers computes them."""
    logits = (hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t()))[:, :vocabulary].float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


@contextlib.contextmanager
def eager_logits() -> Iterator[None]:
    """Inside, the reference's logits have the type of its inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_logits", rounded_logits)
        yield


@contextlib.contextmanager
def exact_logits() -> Iterator[None]:
    """Inside, the CPU counts as one without bfloat16 products: the head is raised to float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: False)
        yield
