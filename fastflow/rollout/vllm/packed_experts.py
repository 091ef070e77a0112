"""Has vLLM on a CPU take new weights for experts: its kernels read a packed copy, which its loader would write over.

vLLM packs the experts once, when it starts, and its own reloading leaves that out on a CPU. On a GPU the weights stay
as they are loaded, as long as Triton's kernels multiply them: the engine asks for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class PackedExperts:
    """The experts of one model of vLLM's. Between `unpack` and `pack`, vLLM's loader may write to them."""

    def __init__(self) -> None:
        self._unpacked = False

    def unpack(self, model: nn.Module) -> None:
        """Give the experts memory for plain weights. All of them must be loaded before `pack`."""
        if self._unpacked:
            return
        self._unpacked = True
        from vllm.model_executor.utils import replace_parameter

        for experts in experts_of(model):
            settings = experts.quant_method.moe
            width, height = settings.hidden_dim, settings.intermediate_size_per_partition
            count, like = len(experts.w13_weight), experts.w13_weight.detach()
            replace_parameter(experts, "w13_weight", like.new_empty(count, 2 * height, width))
            replace_parameter(experts, "w2_weight", like.new_empty(count, width, height))

    def pack(self, model: nn.Module) -> None:
        """Pack what was loaded, if anything was."""
        if self._unpacked:
            pack_experts(model)
        self._unpacked = False


@torch.no_grad()
def pack_experts(model: nn.Module) -> None:
    """Pack experts whose weights are plain, as vLLM does after the first load."""
    for experts in experts_of(model):
        experts.quant_method.moe_kernel.fused_experts.process_weights_after_loading(experts)


def experts_of(model: nn.Module) -> Iterator[Any]:
    """Yield the modules that hold the weights of a layer's experts."""
    return (module for module in model.modules() if hasattr(module, "w13_weight"))
