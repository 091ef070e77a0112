"""The Hopper path where it can run: on sm_90, else on the CPU, its projection emulated and the rest interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor

from fastflow_kernels import matmul
from fastflow_kernels.hopper.support import device_obstacle


@pytest.fixture
def device() -> torch.device:
    """One alone: Triton's kernels either are interpreted in a process, or are not."""
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if obstacle := device_obstacle(found, torch.bfloat16):
        pytest.skip(f"the Hopper path cannot run here: {obstacle}")
    return found


@pytest.fixture(autouse=True)
def rounding_interpreter(monkeypatch):
    """Triton's interpreter cuts float32 off to bfloat16, where its compiler rounds: here it rounds."""
    triton = pytest.importorskip("triton", reason="needs triton: pip install 'fastflow[triton]'")
    if torch.cuda.is_available():
        return
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of triton 3.6 needs numpy < 2.4: pip install 'numpy<2.4'")
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values, source, target, mode):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)


@pytest.fixture
def hopper(monkeypatch):
    """Both ops take the path, with factors in bfloat16 whatever this CPU multiplies.

    Products of the gradient leave in float32, as a tensor core's do, where the CPU's would round.
    """
    monkeypatch.setattr(matmul, "cpu_multiplies_bfloat16", lambda: True)
    monkeypatch.setenv("FASTFLOW_KERNELS", "hopper")
    if not torch.cuda.is_available():
        monkeypatch.setattr(matmul, "_multiply_", multiplied)


def multiplied(total: Tensor, left: Tensor, right: Tensor, *, overwrite: bool) -> Tensor:
    product = left.float() @ right.float()
    return total.copy_(product if overwrite else total + product)
