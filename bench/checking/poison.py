"""Memory that nobody has written yet, marked with patterns that no arithmetic makes."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor

PATTERN = {8: 0x7FF8DEADBEEF0BAD, 4: 0x7FC0DEAD, 2: 0x7FDE}  # quiet NaNs; as int64 it is no target or offset either
_SIGNED = {8: torch.int64, 4: torch.int32, 2: torch.int16}
_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)


def poison_(tensor: Tensor) -> Tensor:
    """Fill all of the tensor's storage, padding included."""
    size = tensor.element_size()
    if tensor.device.type == "cpu" and size in PATTERN and tensor.untyped_storage().nbytes():
        torch.empty(0, dtype=_SIGNED[size]).set_(tensor.untyped_storage()).fill_(PATTERN[size])
    return tensor


def is_poison(values: np.ndarray) -> np.ndarray:
    """Which of them hold the pattern; none of a type of one byte."""
    size = values.dtype.itemsize
    if size not in PATTERN:
        return np.zeros(values.shape, bool)
    return values.view(f"u{size}") == PATTERN[size]


@contextlib.contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within it torch.empty and its relatives hand out poison."""
    with contextlib.ExitStack() as stack:
        for owner, name in _ALLOCATORS:
            allocate = getattr(owner, name)

            def allocate_poisoned(*arguments, allocate=allocate, **options):
                return poison_(allocate(*arguments, **options))

            stack.enter_context(mock.patch.object(owner, name, allocate_poisoned))
        yield
