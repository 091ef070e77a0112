"""Runs the experts of a mixture over the tokens that a router sends them: two grouped products, whatever the routing.

transformers knows it by the name `fastflow_experts`. Tokens are put in the order of their experts, so that the rows of
an expert stand together, and one call multiplies all of them: `torch.nn.functional.grouped_mm`, a single kernel in
bfloat16 on compute capability 9 and 10, and a product for each expert elsewhere. No shape depends on the routing, and
every expert has a gradient, if only of zeros. Of transformers' own implementations, `eager` and `batched_mm` copy
weights or their gradients for each expert or token, and `grouped_mm` leaves float32 weights as they are under autocast.
Sums over a token's experts are in a fixed order, in the backward pass too, so that a run repeats to the bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "fastflow_experts"
ROUNDED = "_fastflow_rounded"  # an attribute of experts
FAMILIES = ("qwen3_moe", "qwen3_5_moe_text")
GROUPED = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16  # bytes of which grouped_mm wants multiples, in a row and in an address
CAPABILITY = (8, 0)  # of the GPUs that multiply in bfloat16


def take_experts(config: PretrainedConfig) -> None:
    """Have a model run its experts by this module, where it has any."""
    if has_experts(config):
        from transformers.integrations.moe import ExpertsInterface

        ExpertsInterface.register(NAME, _outside_compiled_layers())
        config._experts_implementation = NAME


@functools.cache
def _outside_compiled_layers() -> Callable[..., Tensor]:
    """Keep the experts out of torch.compile, which takes grouped products in bfloat16 alone."""
    return torch.compiler.disable(run_experts)


def has_experts(config: PretrainedConfig) -> bool:
    return config.model_type in FAMILIES


def expert_weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the weights of a module of experts: (E, 2 I, D) of gate and up, (E, D, I) of down. Empty for others."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", None) not in FAMILIES or not hasattr(module, "_apply_gate"):
        return ()
    weights: tuple[nn.Parameter, ...] = (module.gate_up_proj, module.down_proj)  # type: ignore[assignment]
    return weights


def router_weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the weight (E, D) of the router of a layer with experts; empty for other modules."""
    experts = getattr(module, "experts", None)
    if not isinstance(experts, nn.Module) or not expert_weights(experts):
        return ()
    return (module.get_parameter("gate.weight"),)


def check_device(config: PretrainedConfig, device: torch.device) -> None:
    """Raise FastflowError where a mixture of experts would meet a GPU that has no grouped products."""
    if device.type == "cuda" and has_experts(config) and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise FastflowError(
            f"a mixture of experts needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later, and "
            f"{torch.cuda.get_device_name(device)} is older; train a dense model, or use --model.device cpu"
        )


@contextlib.contextmanager
def without_router_logits(config: PretrainedConfig) -> Iterator[None]:
    """Keep no routers' logits in the passes inside, though config.json asks for them: no loss of ours reads them."""
    config.output_router_logits = False
    try:
        yield
    finally:
        config.output_router_logits = True


def multiply(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows (S, N) of each expert by its weights (M, N): (S, M). ends: (E,), where each one's rows end."""
    aligned = all(size * rows.element_size() % ALIGNMENT == 0 for size in weights.shape[1:])
    if rows.dtype in GROUPED and aligned and weights.data_ptr() % ALIGNMENT == 0:
        return grouped_mm(rows, weights.transpose(1, 2), offs=ends)
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([part @ one.T for part, one in zip(rows.split(counts), weights.unbind(0), strict=True)])


def run_experts(
    experts: Any, hidden: Tensor, chosen: Tensor, shares: Tensor, *, product: Callable[..., Tensor] = multiply
) -> Tensor:
    """Return the sum over each token's experts, (T, D), in the type of the products: that of autocast, where it is on.

    hidden: (T, D). chosen, shares: (T, K) of the K experts of each token. product: in the place of `multiply`.
    """
    device, count = hidden.device.type, experts.num_experts
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else experts.gate_up_proj.dtype
    of_rows, order = chosen.flatten().sort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends = torch.searchsorted(of_rows, torch.arange(count, device=of_rows.device), right=True, out_int32=True)
    rows: Tensor = _Dealt.apply(hidden.to(dtype), order, places)
    gate_up_proj, down_proj = _in_type(experts, dtype)
    gate, up = product(rows, gate_up_proj, ends).chunk(2, dim=-1)
    found = product(experts.act_fn(gate) * up, down_proj, ends)
    scaled = found * shares.flatten()[order, None].to(dtype)
    result: Tensor = _Gathered.apply(scaled, order, places, len(hidden))
    return result


def _in_type(experts: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weights of experts in the type of the products, from what `rounded_once` keeps where it is open."""
    kept = getattr(experts, ROUNDED, None)
    if kept is not None and not torch.is_grad_enabled():
        if dtype not in kept:
            kept[dtype] = tuple(weight.to(dtype) for weight in expert_weights(experts))
        found: tuple[Tensor, Tensor] = kept[dtype]
        return found
    gate_up_proj, down_proj = (weight.to(dtype) for weight in expert_weights(experts))
    return gate_up_proj, down_proj


@contextlib.contextmanager
def rounded_once(model: nn.Module) -> Iterator[None]:
    """Round the weights of experts once for all passes inside, as autocast does for linear layers: in decoding there is
    a pass for each token. The weights must not change meanwhile.
    """
    modules = [module for module in model.modules() if expert_weights(module)]
    for module in modules:
        setattr(module, ROUNDED, {})
    try:
        yield
    finally:
        for module in modules:
            delattr(module, ROUNDED)


class _Dealt(torch.autograd.Function):
    """Puts tokens (T, D) in the order of their experts: (T K, D). order: the choices in it; places: its inverse."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(order, places)
        ctx.tokens = len(tokens)
        return _dealt(tokens, order)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        _, places = ctx.saved_tensors
        return _gathered(upstream[0], places, ctx.tokens), None, None


class _Gathered(torch.autograd.Function):
    """Adds up the rows (T K, D) of each token: (T, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, places: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(order)
        return _gathered(rows, places, tokens)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return _dealt(upstream[0], order), None, None, None


def _dealt(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens[order // (len(order) // len(tokens))]


def _gathered(rows: Tensor, places: Tensor, tokens: int) -> Tensor:
    return rows[places].view(tokens, -1, rows.shape[-1]).sum(1, dtype=rows.dtype)
