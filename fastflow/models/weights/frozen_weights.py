"""Holds a frozen base under autocast in half the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastflow.models.layers.embedding import is_known, put_out_float32
from fastflow.models.layers.experts import expert_weights


def in_bfloat16(weight: torch.Tensor) -> torch.Tensor | None:
    """Return float32 weights in bfloat16; None where that would change one of them."""
    return narrow if torch.equal((narrow := weight.to(torch.bfloat16)).float(), weight) else None


@torch.no_grad()
def hold_in_bfloat16(
    model: torch.nn.Module, narrowed: Callable[[torch.Tensor], torch.Tensor | None] = in_bfloat16
) -> int:
    """Store weights in bfloat16 where that changes no bit of a result. Returns how many parameters it stored so.

    Under autocast, weights of linear layers and of experts are rounded to bfloat16 before each product. Weights that
    are bfloat16 numbers already, as in a checkpoint of that type, need no wider type. The same holds for the embedding,
    whose rows become float32 again when they are looked up. Norms, biases, routers and all weights that rounding would
    change stay as they are, and so does an embedding of unknown code. narrowed: gives a float32 weight in bfloat16;
    None where it stays.
    """
    known: dict[torch.nn.Module, tuple[torch.nn.Parameter, ...]] = {
        module: (module.get_parameter("weight"),)
        for module in model.modules()
        if type(module).forward is torch.nn.Linear.forward or is_known(module)
    }
    known |= {module: weights for module in model.modules() if (weights := expert_weights(module))}
    others = {id(one) for module in {*model.modules()} - known.keys() for one in module.parameters(recurse=False)}
    stored: dict[int, int] = {}  # tied weights are one parameter
    for module, weights in known.items():
        for weight in weights:
            if id(weight) in others:
                continue
            if id(weight) not in stored:
                if weight.dtype != torch.float32 or (narrow := narrowed(weight)) is None:
                    continue
                weight.data = narrow
                stored[id(weight)] = weight.numel()
            if isinstance(module, torch.nn.Embedding):
                put_out_float32(module)
    return sum(stored.values())
