"""Where and how the ops run."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Kernels go to this device, not to the current one; and autocast, which would round what the ops accumulate,
    is off: they choose their types themselves."""
    of_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.autocast(device.type, enabled=False), of_device:
        yield


def is_being_captured(device: torch.device) -> bool:
    """Whether what is launched now on this device goes into a CUDA graph, where the host can neither ask nor copy."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def copied_to(device: torch.device, values: Tensor) -> Tensor:
    """The values on this device; on their way from the host to a CUDA device, through pinned memory: a copy from
    other memory would hold the host until the device has come to it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
