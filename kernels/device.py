"""Where and how the ops run."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Kernels go to this device, not to the current one; and autocast, which would round what the ops accumulate,
    is off: they choose their types themselves."""
    of_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.autocast(device.type, enabled=False), of_device:
        yield
