"""What an embedding does with the rows that it looks up: Gemma's multiplies them by a factor, the root of their width.

Gemma's code rounds the factor to the type of its weight, so that a bfloat16 model has another one (25.25 in place of
25.298). Its weights were trained with that, and vLLM computes with it. Under autocast the weight is float32, but vLLM
runs in bfloat16: there, fastflow rounds the factor as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALED = (
    "transformers.models.gemma3.modeling_gemma3.Gemma3TextScaledWordEmbedding",
    "fastflow.models.cut.embedding.CutEmbedding",  # in the place of one
)


def is_known(embedding: nn.Module) -> bool:
    """Whether an embedding computes nothing but rows of its weight, times its factor where it has one."""
    return type(embedding).forward is nn.Embedding.forward or _name(embedding) in SCALED


def factor_of(embedding: nn.Module) -> Tensor | None:
    """Return what an embedding multiplies its rows by; None where it does not."""
    return getattr(embedding, "embed_scale", None) if _name(embedding) in SCALED else None


def finish(rows: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply rows that are looked up by the factor, in their type."""
    return rows if factor is None else rows * factor.to(rows.dtype)


def put_out_float32(embedding: nn.Embedding) -> None:
    """Have an embedding put out float32, whatever type holds its weight. The factor is not rounded to that type."""
    module: Any = embedding
    module.forward = MethodType(_in_float32, embedding)  # as a method, a copy of the embedding looks up its own rows


def puts_out_float32(embedding: nn.Module) -> bool:
    """Whether put_out_float32 has changed this embedding."""
    return getattr(embedding.forward, "__func__", None) is _in_float32


@contextlib.contextmanager
def factor_in_bfloat16(model: PreTrainedModel) -> Iterator[None]:
    """Round the factor of a model's embedding to bfloat16, in the passes inside."""
    embedding = model.get_input_embeddings()
    factor = factor_of(embedding)
    if factor is None:
        yield
        return
    embedding.embed_scale = factor.to(torch.bfloat16)
    try:
        yield
    finally:
        embedding.embed_scale = factor


def _in_float32(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    return finish(nn.Embedding.forward(embedding, ids).float(), factor_of(embedding))


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
