"""Chooses the implementation that serves a call, by device, type and what is installed; and runs on its device.

    torch   PyTorch alone: any device, any type
    native  torch's products on the CPU, the native library's sweeps over rows of logits between them
    rows    the vendor library's products, one Triton kernel over the rows of logits between them
    cuda    the same with the kernel of csrc/cuda, only where FASTFLOW_KERNELS asks for it
    fused   a Triton product whose epilogue takes the statistics and leaves exponentials instead of logits
    hopper  the same by QuACK's product, for the devices and heads that it takes, where it is installed

`FASTFLOW_KERNELS` in the environment forces one of them for every call. A call that it cannot serve is an error.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fastflow_kernels.cpu import native
from fastflow_kernels.cuda import native as cuda_native
from fastflow_kernels.head import Head
from fastflow_kernels.hopper import support
from fastflow_kernels.matmul import factor_dtype
from fastflow_kernels.projector import Projector
from fastflow_kernels.shard import VocabularyShard

FORCE = "FASTFLOW_KERNELS"
NAMES = ("torch", "native", "rows", "cuda", "fused", "hopper")
TRITON = ("rows", "cuda", "fused", "hopper")  # sequences are settled by a Triton kernel


@dataclass(frozen=True)
class Choice:
    """An implementation's name, and why it was taken."""

    name: str
    reason: str

    @property
    def uses_triton(self) -> bool:
        return self.name in TRITON

    def projector(self) -> type[Projector]:
        """Return the class that does the work; import Triton only where it is used."""
        if self.name == "torch":
            from fastflow_kernels.torch_projector import TorchProjector

            return TorchProjector
        if self.name == "native":
            from fastflow_kernels.cpu.projector import NativeProjector

            return NativeProjector
        if self.name == "cuda":
            from fastflow_kernels.cuda.projector import CudaRowsProjector

            return CudaRowsProjector
        if self.name == "hopper":
            from fastflow_kernels.hopper.projector import HopperProjector

            return HopperProjector
        from fastflow_kernels.triton import projectors

        return {"rows": projectors.RowsProjector, "fused": projectors.FusedProjector}[self.name]

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def choose(device: torch.device, dtype: torch.dtype, head: Head | None = None, *, statistics: bool = False) -> Choice:
    """Choose for inputs on this device that enter the products in this type.

    head: that of the call; None for an ordinary one. statistics: whether the call asks for TokenStatistics.

    Raises:
        ValueError: FASTFLOW_KERNELS names no implementation.
        RuntimeError: it names one that cannot serve this call.
    """
    choice = _chosen(device, dtype, head, statistics)
    if statistics and choice.name == "hopper":
        return replace(choice, reason=f"{choice.reason}; the projection that takes statistics is that of fused")
    return choice


def _chosen(device: torch.device, dtype: torch.dtype, head: Head | None, statistics: bool) -> Choice:
    forced = os.environ.get(FORCE)
    if forced is None:
        return _best(device, dtype, head)
    if forced not in NAMES:
        raise ValueError(f"{FORCE} must be one of {', '.join(NAMES)}, got {forced!r}; correct it or unset it.")
    obstacle = _obstacle(forced, device, dtype, head)
    if statistics and forced == "cuda":
        obstacle = "the CUDA kernels take log-probs alone, and no statistics"
    if obstacle:
        raise RuntimeError(f"{FORCE}={forced} cannot serve this call: {obstacle}; unset it, or set it to torch.")
    return Choice(forced, f"{FORCE} asks for it")


def explain(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
    shard: VocabularyShard | None = None,
    statistics: bool = False,
) -> str:
    """Say which implementation a call with these inputs would take, and why, in one line. The others: as in the call.

    Asking for statistics leaves the choice as it is. `cuda`, which is taken on request alone, refuses such a call, and
    `hopper` projects by the product of `fused` in it.

    >>> explain(torch.zeros(2, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64))
    'torch: the native library computes in float32, which would lose float64 precision'
    """
    head = Head(weight[:vocabulary], bias, softcap=softcap, shard=shard)
    return str(choose(hidden.device, factor_dtype(hidden, weight), head, statistics=statistics))


def has_triton_kernels_for(tensor: torch.Tensor) -> bool:
    """Tell whether a helper kernel can run on a CUDA tensor, whatever computed it."""
    return tensor.is_cuda and _triton_obstacle(tensor.device, tensor.dtype) is None


@contextlib.contextmanager
def running_on(device: torch.device) -> Iterator[None]:
    """Send kernels to this device, not to the current one, and switch autocast off.

    The ops choose their types themselves; autocast would round what they accumulate.
    """
    of_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.autocast(device.type, enabled=False), of_device:
        yield


def is_being_captured(device: torch.device) -> bool:
    """Tell whether what is launched now on this device goes into a CUDA graph.

    There the host can neither ask the device nor copy to it.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _best(device: torch.device, dtype: torch.dtype, head: Head | None) -> Choice:
    if device.type == "cpu":
        obstacle = _native_obstacle(device, dtype)
        library = None if obstacle else native.library()
        if library is not None and library.instruction_set == "portable":
            obstacle = "the native library has no vector code for this processor (GCC 12 or Clang 18 would make some)"
        return Choice("torch", obstacle) if obstacle else Choice("native", f"compiled sweeps, {native.describe()}")
    obstacle = _triton_obstacle(device, dtype)
    if obstacle:
        return Choice("torch", obstacle)
    if dtype == torch.float32:
        return Choice("rows", "products of float32 are the vendor library's")
    reason = f"{dtype} products run on tensor cores, and their epilogue is free"
    if head is None or torch.cuda.get_device_capability(device) != support.CAPABILITY:
        return Choice("fused", reason)
    if obstacle := _hopper_obstacle(device, dtype, head):
        return Choice("fused", f"{reason}; not hopper: {obstacle}")
    return Choice("hopper", "QuACK's product for sm_90 takes this head, and runs at the vendor library's speed")


def _obstacle(name: str, device: torch.device, dtype: torch.dtype, head: Head | None) -> str | None:
    """Say why the implementation of this name cannot serve; None where it can."""
    if name == "torch":
        return None
    if name == "native":
        return _native_obstacle(device, dtype)
    if name == "cuda" and (obstacle := cuda_native.obstacle(device, dtype)):
        return obstacle
    if name == "hopper":
        return _hopper_obstacle(device, dtype, head)
    return _triton_obstacle(device, dtype)


def _native_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the native library serves the CPU, not {device.type}"
    if dtype == torch.float64:
        return "the native library computes in float32, which would lose float64 precision"
    return native.why_not() if native.library() is None else None


def _hopper_obstacle(device: torch.device, dtype: torch.dtype, head: Head | None) -> str | None:
    obstacle = support.device_obstacle(device, dtype) or (None if head is None else support.head_obstacle(head))
    # the kernels between its products are Triton's, and compute in float32 whatever is stored
    return obstacle or _triton_obstacle(device, torch.float32)


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    if dtype == torch.float64:
        return "the Triton kernels accumulate in float32, which would lose float64 precision"
    if not _has_triton():
        return "Triton is not installed"
    if device.type == "cpu" and not _interprets():
        return "Triton has no kernels for cpu (set TRITON_INTERPRET=1 before the import to interpret them)"
    if torch.version.hip:
        return "the Triton kernels are written for NVIDIA devices"
    if device.type not in ("cpu", "cuda"):
        return f"the Triton kernels are written for CUDA devices, not for {device.type}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need compute capability 8.0"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
