"""Finds the CUDA library, loads it once, and says why where there is none.

It is optional. setup.py compiles `csrc/cuda` into `_native_cuda.so` in the package's folder where there is nvcc and a
CUDA build of torch; csrc/build_cuda.py has the rule.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from fastflow_kernels.cuda.row_pass import CudaRowPass
from fastflow_kernels.shared_library import Unusable, load

FILE = Path(__file__).parents[1] / "_native_cuda.so"
ABI_VERSION = 2  # abi_version in csrc/cuda/row_pass.cu
REBUILD = "run FASTFLOW_CUDA=1 pip install --force-reinstall --no-deps . in fastflow's source folder"


class _Outcome(NamedTuple):
    """Of the one attempt to load: the library's function, or why there is none."""

    row_pass: CudaRowPass | None
    reason: str | None = None


def row_pass() -> CudaRowPass:
    """Return the library's row pass.

    Raises:
        RuntimeError: there is no library, or none that loads.
    """
    found = _load()
    if found.row_pass is None:
        raise RuntimeError(f"{found.reason}.")
    return found.row_pass


def why_not() -> str | None:
    """Say what happened and what to do; None where the library is loaded."""
    return _load().reason


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why the CUDA kernels cannot serve a call on this device with products in this type; None where they can."""
    if device.type != "cuda" or torch.version.hip:
        return f"the CUDA kernels run on NVIDIA devices, not on {device.type}"
    if dtype == torch.float64:
        return "the CUDA kernels accumulate in float32, which would lose float64 precision"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the CUDA kernels need compute capability 8.0"
    return why_not()


@functools.cache
def _load() -> _Outcome:
    if not FILE.exists():
        return _Outcome(None, f"fastflow was installed without its CUDA library; {REBUILD}")
    try:
        shared = load(
            FILE, name="fastflow's CUDA library", version_function="fastflow_cuda_abi_version", version=ABI_VERSION
        )
    except Unusable as reason:
        return _Outcome(None, f"{reason}; {REBUILD}")
    return _Outcome(CudaRowPass(shared))
