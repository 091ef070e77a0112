"""The most memory that was in use at once: what tensors hold on CUDA, the whole process on the CPU."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

# getrusage's maximum would begin at what the parent process held, and cannot be reset.
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to watch. On the CPU, where the system lets a process reset its resident maximum."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        RESET.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int | None:
    """Since `reset_peak`: bytes that tensors held on CUDA, of the whole process on the CPU; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def peak_of(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which one call raises the peak above what stands before it; None where nobody tells.

    Make the call once before: libraries load their code and take their workspaces in the first.
    """
    reset_peak(device)
    before = peak_bytes(device)
    call()
    after = peak_bytes(device)
    return None if before is None or after is None else after - before
