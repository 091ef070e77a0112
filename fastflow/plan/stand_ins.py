"""Stand-ins for the kernels that no CPU runs: they compute nothing, and save for the backward pass what those do."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fastflow.models.layers.experts import has_experts, run_experts
from fastflow.models.layers.linear_attention import RULE, linear_attentions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION = EXPERTS = "fastflow_plan"  # their names in transformers
WIDE_SDPA = "sdpa with repeated keys"  # in float32 on CUDA
SHARING_VARLEN = "varlen without repeated keys"  # from torch 2.13 on
CHUNK = 64  # tokens over which the gated delta rule sums at once


def register_attention() -> None:
    """Register the attention with transformers. A second call changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def take_experts(config: PretrainedConfig) -> None:
    """Have a mixture multiply its experts by a stand-in: not every type of torch's product runs without numbers."""
    if has_experts(config):
        from transformers.integrations.moe import ExpertsInterface

        ExpertsInterface.register(EXPERTS, functools.partial(run_experts, product=_Product.apply))
        config._experts_implementation = EXPERTS


def take_layers_of_liger(model: nn.Module) -> None:
    """Have each norm save its input and one number a row, and each MLP gate and up."""
    module: Any  # of which a method changes
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)
        elif name.endswith("MLP"):
            module.forward = MethodType(_mlp, module)


def take_narrow_masks(model: nn.Module) -> None:
    """Have each dropout save a mask of one byte a number, as on CUDA."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.forward = MethodType(_dropout, module)  # type: ignore[method-assign]


@contextlib.contextmanager
def rule_of_a_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Let linear attention save, in the passes inside, what the kernel of flash-linear-attention does."""
    with contextlib.ExitStack() as patches:
        for module in {sys.modules[type(mixer).__module__] for mixer in linear_attentions(model)}:
            patches.enter_context(patch.object(module, RULE, _delta_rule))
        yield


class _Saving(torch.autograd.Function):
    """Returns a new tensor like the first one, and saves what it is given. The new one, too, where it is the output of
    an attention.
    """

    @staticmethod
    def forward(ctx: Any, saves_output: bool, numbers: int, first: Tensor, *others: Tensor) -> Tensor:
        output = torch.empty_like(first, memory_format=torch.contiguous_format)
        statistics = first.new_empty(numbers, dtype=torch.float32)
        ctx.save_for_backward(first, *others, statistics, *([output] if saves_output else []))
        return output


class _Product(torch.autograd.Function):
    """Multiplies rows (S, N) by experts (E, M, N): (S, M)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        of_rows, of_weights, _ = ctx.needs_input_grad
        ctx.save_for_backward(*[rows] * of_weights, *[weights] * of_rows, ends)
        return rows.new_empty(len(rows), weights.shape[1])


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_kernel: str, **__: Any
) -> tuple[Tensor, None]:
    """Attend query (1, H, T, E) to key and value (1, H_kv, T, E). Returns (1, T, H, E)."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    if packed_kernel in ("varlen", WIDE_SDPA):
        key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], 1) for states in (key, value))
    gathers = packed_kernel in ("sdpa", WIDE_SDPA)
    states = [one.transpose(1, 2).clone() if gathers else one.transpose(1, 2) for one in (query, key, value)]
    output: Any = _Saving.apply(True, query.shape[1] * query.shape[2], *states)
    return output.clone() if gathers else output, None


def _delta_rule(
    query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **_: Any
) -> tuple[Tensor, Tensor | None]:
    """Save normalised queries and keys with a number for each head, values, both gates, and a row of each chunk's
    inverse, which has a number for each of its tokens.
    """
    inverse = value.new_empty(*value.shape[:-1], CHUNK)
    heads = 2 * key.shape[:-1].numel()
    output: Any = _Saving.apply(False, heads, value, query.clone(), key.clone(), g.clone(), beta, inverse)
    return output, None


def _norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    output: Any = _Saving.apply(False, hidden.shape[:-1].numel(), hidden, norm.weight)
    return output


def _mlp(mlp: Any, hidden: Tensor) -> Tensor:
    output: Tensor = mlp.down_proj(_Saving.apply(False, 0, mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    return output


def _dropout(dropout: nn.Dropout, hidden: Tensor) -> Tensor:
    return torch.native_dropout(hidden, dropout.p, True)[0]
