"""A reward for runs whose host has no memory for a copy of the weights any more: from the third step on, of twelve
responses each, and on the rank that judges alone, which is the one that copies.
"""

from __future__ import annotations

import torch

from fastflow.train.saves import checkpoint

RESPONSES = 12  # of a step
_judged = 0
_whole = checkpoint.whole


def reward(response: str, record: object) -> float:
    global _judged
    _judged += 1
    return float(len(response))


class _NoMemory:
    def to(self, *_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes")


def _gathered(tensor: torch.Tensor) -> object:
    gathered = _whole(tensor)
    return _NoMemory() if _judged > 2 * RESPONSES else gathered


checkpoint.whole = _gathered  # type: ignore[assignment]
