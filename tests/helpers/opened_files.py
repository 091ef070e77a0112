"""The files of fastflow_kernels that one call runs through, in the order in which it first enters each.

    python tests/helpers/opened_files.py      the list for one bfloat16 flow_loss by the implementation `fused`

The call is real, forward and backward, on a CPU: Triton's interpreter runs the kernels. The interpreter gets bfloat16
arithmetic wrong, so the numbers mean nothing; the way to them is that of a CUDA device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    sys.path[:0] = [str(Path(__file__).parents[2] / "kernels"), str(Path(__file__).parents[2])]

import torch

import fastflow_kernels
from entered_files import entered_files

PACKAGE = Path(fastflow_kernels.__file__).parent


def opened_files(call: Callable[[], object]) -> list[str]:
    """Files of the package with a function that `call` runs, relative to the package, by their first function."""
    call()  # a first time, so that every import is done
    return [file.relative_to(PACKAGE).as_posix() for file in entered_files(call, [PACKAGE])]


def fused_flow_loss() -> None:
    """Forward and backward over two blocks of bfloat16 rows, as on a CUDA device."""
    from bench.checking.forcing import as_on_cuda
    from fastflow_kernels import autograd

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 16, generator=generator).bfloat16().requires_grad_() for size in (6, 40))
    numbers = {name: torch.zeros(2) for name in ("log_target", "behaviour_logprob")}
    as_cuda_gradient = mock.patch.object(autograd, "has_triton_kernels_for", lambda _: True)
    with as_on_cuda("fused", torch.bfloat16, None, multiprocessors=2), as_cuda_gradient:
        result = fastflow_kernels.flow_loss(
            hidden, weight, torch.arange(6), torch.tensor([0, 3, 6]),
            log_z=torch.zeros(2, requires_grad=True), length_scale=torch.full((2,), 1 / 3), **numbers,
            clip_low=0.2, clip_high=0.28, normaliser=2, block_rows=3,
        )  # fmt: skip
        result.loss.backward()


if __name__ == "__main__":
    print(*opened_files(fused_flow_loss), sep="\n")
