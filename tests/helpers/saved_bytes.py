"""What autograd saves in a forward pass."""

from __future__ import annotations

import torch

from fastflow.data.packing import PackedBatch
from fastflow.models.packed import PackedModel


def saved_bytes(policy: PackedModel, batch: PackedBatch) -> int:
    """Bytes that autograd saves in one forward pass, parameters and buffers aside."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # the tensors themselves, or their memory would be used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.hidden_states(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
