"""How each decoder layer runs over a packed batch: compiled or not, its activations kept or recomputed.

Both are wrapped around the layer's forward here, and not by transformers' own switches, so that their order is one and
the same in every version: the recomputation outside, the compiled layer inside.
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
    """How many layers `model.checkpoint_share` recomputes: the share, rounded to whole layers."""
    return round(share * layers)


def arrange_layers(model: PreTrainedModel, *, compiled: bool = False, checkpoint_share: float = 0.0) -> None:
    """Compile this model's decoder layers, and recompute the activations of the first ones in the backward pass.

    The first layers are the last to go backward: by then the others' activations are gone, so that what is recomputed
    takes no memory on top of the peak. Calls other than those over a packed batch, as in decoding, stay as they were.
    """
    layers = model.get_decoder().layers
    recomputed = recomputed_layers(len(layers), checkpoint_share)
    for index, layer in enumerate(layers):
        if compiled or index < recomputed:
            # mypy takes the __hash__ of a module's instances for that of its class, here and below
            run = _packed_forward(type(layer), compiled=compiled, recomputed=index < recomputed)  # type: ignore[arg-type]
            layer.forward = MethodType(run, layer)  # a method, so that a copy of the model runs its own weights


def check_compiler(device: torch.device) -> None:
    """Raise FastflowError where torch.compile would not find what it generates code for."""
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
    """One for all layers and all lengths: their weights are inputs of the compiled code, lengths its symbols."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    forward = inspect.unwrap(layer_class.forward)  # without transformers' wrapper that checkpoints
    return torch.compile(forward, dynamic=True)
