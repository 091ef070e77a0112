"""Arranges how each decoder layer runs over a packed batch: compiled or not, with activations kept or recomputed.

This module wraps both around the layer's forward. transformers has switches for them, but their order depends on its
version. Here the recomputation is always outside, and the compiled layer inside.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VARIANTS = 64  # of a compiled function: with and without gradients, adapters, autocast; the compiler's default is 8


def recomputed_layers(layers: int, share: float) -> int:
    """Count the layers that `model.checkpoint_share` recomputes: the share, rounded to whole layers."""
    return round(share * layers)


def arrange_layers(model: PreTrainedModel, *, compiled: bool = False, checkpoint_share: float = 0.0) -> None:
    """Compile this model's decoder layers, and recompute the activations of the first ones in the backward pass.

    The first layers run backward last. By then the activations of the other layers are gone, so the recomputed ones do
    not raise the peak of the memory. Calls without a packed batch, as in decoding, stay as they were.
    """
    layers = model.get_decoder().layers
    recomputed = recomputed_layers(len(layers), checkpoint_share)
    for index, layer in enumerate(layers):
        if compiled or index < recomputed:
            # mypy takes the __hash__ of a module's instances for that of its class, here and below
            run = _packed_forward(type(layer), compiled=compiled, recomputed=index < recomputed)  # type: ignore[arg-type]
            layer.forward = MethodType(run, layer)  # as a method, a copy of the model runs its own weights


def check_compiler(device: torch.device) -> None:
    """Raise FastflowError where torch.compile would not find the compiler for its code."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise FastflowError('model.compile = layers needs triton on CUDA: pip install "fastflow[triton]", or use off')
    compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, filter(None, compilers))):
        raise FastflowError("model.compile = layers needs a C++ compiler on a CPU; install g++ or clang++, or use off")


@functools.cache
def _packed_forward(layer_class: type[torch.nn.Module], *, compiled: bool, recomputed: bool) -> Callable[..., Any]:
    plain = layer_class.forward
    packed = _compiled_forward(layer_class) if compiled else plain  # type: ignore[arg-type]

    def run(layer: torch.nn.Module, *inputs: Any, **options: Any) -> Any:
        if "sequence_lengths" not in options:
            return plain(layer, *inputs, **options)
        if recomputed and layer.training and torch.is_grad_enabled():
            return checkpoint(packed, layer, *inputs, use_reentrant=False, **options)
        return packed(layer, *inputs, **options)

    return run


@functools.cache
def _compiled_forward(layer_class: type[torch.nn.Module]) -> Callable[..., Any]:
    """Compile once for all layers and lengths: weights are inputs of the compiled code, lengths are symbols in it."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    forward = inspect.unwrap(layer_class.forward)  # without the checkpointing wrapper of transformers
    return torch.compile(forward, dynamic=True)
