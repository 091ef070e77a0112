"""Makes layers of linear attention, which carry a state from token to token (Qwen3.5's), fit for training.

Packed sequences: transformers keeps them apart with the kernels of flash-linear-attention alone, on CUDA. Here such a
layer reads batches of sequences of similar length, padded on the right, by whatever code it has: its own in PyTorch, or
those kernels.

Autocast: the gated delta rule in PyTorch casts all that it reads to float32, and autocast would still multiply it in
bfloat16, other than where a cached pass adds one token. The rule runs without autocast, so that both compute alike.

CPU: transformers takes kernels of other packages on every device once they are installed. Here they serve CUDA alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastflow.models.layers.attention import SequenceLengths
from fastflow.models.layers.similar_lengths import in_buckets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names in transformers' modules, also where they call kernels of other packages
RULE, RULE_OF_A_TOKEN = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"
CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
DECAY = ".A_log"  # ends the name of the rates at which a state decays


def keep_sequences_apart(model: PreTrainedModel) -> None:
    """Have each layer of linear attention start anew at each packed sequence. Calls without a packed batch, as in
    decoding, stay as they were, but for the rule under autocast and for kernels on a CPU.
    """
    for mixer in linear_attentions(model):
        _fit_functions(type(mixer))
        mixer.forward = MethodType(_packed_forward(type(mixer)), mixer)  # type: ignore[arg-type]


def linear_attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of a model's layers that carry a state from token to token."""
    found = (linear_attention_of(layer) for layer in getattr(model.get_decoder(), "layers", ()))
    return [mixer for mixer in found if mixer is not None]


def linear_attention_of(layer: nn.Module) -> nn.Module | None:
    """Return the part of a layer that carries a state from token to token; None where there is none."""
    mixer = getattr(layer, "linear_attn", None)
    return mixer if isinstance(mixer, nn.Module) else None


@functools.cache
def has_fused_rule() -> bool:
    """Whether the package works whose kernels transformers takes for the rule on CUDA."""
    try:
        return hasattr(importlib.import_module("fla.ops.gated_delta_rule"), "chunk_gated_delta_rule")
    except Exception:  # installed in part, or for another system
        return False


@functools.cache
def _packed_forward(mixer_class: type[nn.Module]) -> Callable[..., Tensor]:
    plain = mixer_class.forward

    @torch.compiler.disable  # it reads lengths on the host
    def packed(mixer: nn.Module, hidden_states: Tensor, lengths: tuple[int, ...]) -> Tensor:
        buckets = in_buckets(lengths, hidden_states.device)
        outputs = [plain(mixer, hidden_states=hidden_states[0][positions]) for positions in buckets.positions]
        return torch.stack([buckets.packed(outputs)])  # not a view, of which FSDP warns

    def run(
        mixer: nn.Module, hidden_states: Tensor, *, sequence_lengths: SequenceLengths | None = None, **options: Any
    ) -> Tensor:
        if sequence_lengths is None:
            return plain(mixer, hidden_states=hidden_states, **options)
        return packed(mixer, hidden_states, sequence_lengths.counts)

    return run


def _fit_functions(mixer_class: type[nn.Module]) -> None:
    """Change what the layers call, for all models of the family in this process. A second call changes nothing."""
    module = sys.modules[mixer_class.__module__]
    for name in (RULE, RULE_OF_A_TOKEN, *CONVOLUTIONS):
        function = getattr(module, name, None)
        if function is not None and not isinstance(function, Fitted):
            setattr(module, name, Fitted(function, autocast=name in CONVOLUTIONS))


class Fitted:
    """Calls a function of transformers: on a CPU its own code, whatever kernels are installed; without autocast where
    it is a rule.
    """

    def __init__(self, function: Callable[..., Any], *, autocast: bool):
        self.__wrapped__ = function
        self._autocast = autocast

    def __call__(self, first: Tensor, *arguments: Any, **options: Any) -> Any:
        device, function = first.device.type, self.__wrapped__
        if device == "cpu" and options.get("cu_seqlens") is None and options.get("seq_idx") is None:
            function = inspect.unwrap(function)  # for packed sequences of others, transformers' refusal stays
        with contextlib.nullcontext() if self._autocast else torch.autocast(device, enabled=False):
            return function(first, *arguments, **options)
