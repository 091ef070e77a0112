"""Carries the residual stream in bfloat16 under autocast (`model.residual_stream = bfloat16`).

Under autocast, linear layers put out bfloat16, but the embedding of float32 parameters puts out float32, and so does
every sum that begins with it. Rounded once at its beginning, the stream stays bfloat16 through all layers. Norms read
it and compute in float32 as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BFLOAT16 = "bfloat16"


@contextlib.contextmanager
def in_bfloat16(model: PreTrainedModel) -> Iterator[None]:
    """Round what the embedding puts out to bfloat16, in the passes inside; the model itself stays as it is.

    Position embeddings take their type from the stream. They stay float32, in which cosines keep their precision at
    high positions.
    """
    hooks = [model.get_input_embeddings().register_forward_hook(_to_bfloat16)]
    if (rotary := getattr(model.get_decoder(), "rotary_emb", None)) is not None:
        hooks.append(rotary.register_forward_pre_hook(_like_float32))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _to_bfloat16(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(torch.bfloat16)


def _like_float32(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put an empty tensor in the place of the hidden states, of which rotary embeddings read type and device alone."""
    hidden, *others = inputs
    return (hidden.new_empty(0, dtype=torch.float32), *others)
