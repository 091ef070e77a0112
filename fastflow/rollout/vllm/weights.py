"""The policy's weights in memory that another process sees: a sync moves no data through files or pipes.

Full fine-tuning: the parameters themselves live there, so the optimiser's step is all that a sync needs. LoRA: the
merged weights live there and are merged anew at each sync.
"""

from __future__ import annotations

import torch

from fastflow.models import PackedModel
from fastflow.rollout.vllm.messages import Place, Share


class SharedWeights:
    """All weights of the policy's causal LM, under transformers' names, in one block of memory per type."""

    def __init__(self, policy: PackedModel):
        self._policy = policy
        self._merged: dict[str, torch.Tensor] = {}  # views of shared memory that are written at each sync
        by_dtype: dict[torch.dtype, list[tuple[str, torch.nn.Parameter]]] = {}
        for name, parameter in policy.causal_lm.named_parameters():
            if ".lora_" not in name:
                by_dtype.setdefault(parameter.dtype, []).append((name, parameter))
        self.shares = [self._share(parameters) for parameters in by_dtype.values()]
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Writes what does not stand there by itself: weights with adapters."""
        for name, merged in self._merged.items():
            layer = self._policy.causal_lm.get_submodule(name.removesuffix(".base_layer.weight"))
            torch.add(layer.base_layer.weight, layer.get_delta_weight(layer.active_adapters[0]), out=merged)

    def _share(self, parameters: list[tuple[str, torch.nn.Parameter]]) -> Share:
        total = sum(parameter.numel() for _, parameter in parameters)
        memory = parameters[0][1].new_empty(total)
        if memory.device.type == "cpu":
            memory = memory.share_memory_()
        places, offset = [], 0
        for name, parameter in parameters:
            view = memory[offset : offset + parameter.numel()].view(parameter.shape)
            if name.endswith(".base_layer.weight"):
                self._merged[name] = view
            else:
                view.copy_(parameter.data)
                parameter.data = view
            places.append(Place(name.replace(".base_layer", ""), offset, parameter.shape))
            offset += parameter.numel()
        return Share(memory.detach(), tuple(places))
