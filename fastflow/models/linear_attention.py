"""Makes layers of linear attention, which carry a state from token to token (Qwen3.5's), fit for training.

Packed sequences: transformers keeps them apart with the kernels of flash-linear-attention alone, on CUDA. Here such a
layer reads batches of sequences of similar length, padded on the right, by whatever code it has: its own in PyTorch, or
those kernels.

Autocast: the gated delta rule in PyTorch casts all that it reads to float32, and autocast would still multiply it in
bfloat16, other than where a cached pass adds one token. The rule runs without autocast, so that both compute alike.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastflow.models.attention import SequenceLengths
from fastflow.models.similar_lengths import in_buckets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names in transformers' modules, also where they call kernels of other packages
RULE = "torch_chunk_gated_delta_rule"
CONVOLUTION = "causal_conv1d_fn"


def keep_sequences_apart(model: PreTrainedModel) -> None:
    """Have each layer of linear attention start anew at each packed sequence. Calls without a packed batch, as in
    decoding, stay as they were, but for the rule under autocast.
    """
    for mixer in linear_attentions(model):
        _run_rule_without_autocast(type(mixer))
        mixer.forward = MethodType(_packed_forward(type(mixer)), mixer)  # type: ignore[arg-type]


def linear_attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Return the parts of a model's layers that carry a state from token to token."""
    found = (getattr(layer, "linear_attn", None) for layer in model.get_decoder().layers)
    return [mixer for mixer in found if isinstance(mixer, nn.Module)]


def has_fused_rule() -> bool:
    """Whether the package is installed whose kernels transformers takes for the rule on CUDA."""
    return importlib.util.find_spec("fla") is not None


@functools.cache
def _packed_forward(mixer_class: type[nn.Module]) -> Callable[..., Tensor]:
    plain = mixer_class.forward

    @torch.compiler.disable  # it reads lengths on the host
    def packed(mixer: nn.Module, hidden_states: Tensor, lengths: tuple[int, ...]) -> Tensor:
        buckets = in_buckets(lengths, hidden_states.device)
        outputs = [plain(mixer, hidden_states=hidden_states[0][positions]) for positions in buckets.positions]
        return buckets.packed(outputs).unsqueeze(0)

    def run(
        mixer: nn.Module, hidden_states: Tensor, *, sequence_lengths: SequenceLengths | None = None, **options: Any
    ) -> Tensor:
        if sequence_lengths is None:
            return plain(mixer, hidden_states=hidden_states, **options)
        return packed(mixer, hidden_states, sequence_lengths.counts)

    return run


def _run_rule_without_autocast(mixer_class: type[nn.Module]) -> None:
    """Change the rule for all models of the family in this process. A second call changes nothing."""
    module = sys.modules[mixer_class.__module__]
    rule = getattr(module, RULE, None)
    if rule is not None and not isinstance(rule, WithoutAutocast):
        setattr(module, RULE, WithoutAutocast(rule))


class WithoutAutocast:
    """Calls a rule of transformers in the types of its arguments."""

    def __init__(self, rule: Callable[..., tuple[Tensor, Tensor | None]]):
        self.__wrapped__ = rule

    def __call__(self, query: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(query.device.type, enabled=False):
            return self.__wrapped__(query, *arguments, **options)
