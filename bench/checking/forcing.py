"""Leads the ops into the paths of a CUDA device while they run on the CPU."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from bench.providers.fastflow import forced
from fastflow_kernels import implementation, matmul
from fastflow_kernels.tiles import UNALIGNED_TILE, Tile, has_aligned_rows
from fastflow_kernels.triton import project, projectors


@contextlib.contextmanager
def as_on_cuda(name: str, dtype: torch.dtype, tile: Tile | None, multiprocessors: int) -> Iterator[None]:
    """Within it calls take the implementation of this name, with factors of this type.

    tile: that of the projection where rows are aligned; None for the interpreter's own.
    """

    def choose(hidden: Tensor, weight: Tensor, **_use) -> Tile:
        is_aligned = has_aligned_rows(hidden) and has_aligned_rows(weight)
        return tile if not tile.tma or is_aligned else UNALIGNED_TILE

    with contextlib.ExitStack() as stack:
        stack.enter_context(forced(name))
        stack.enter_context(mock.patch.object(project, "multiprocessors", lambda _: multiprocessors))
        if tile is not None:
            stack.enter_context(mock.patch.object(projectors, "tile_for", choose))
        if dtype == torch.bfloat16:
            stack.enter_context(mock.patch.object(implementation, "_triton_obstacle", lambda *_: None))
            stack.enter_context(mock.patch.object(matmul, "cpu_multiplies_bfloat16", lambda: True))
            stack.enter_context(mock.patch.object(projectors, "library_project", _wide_product))
        yield


def _wide_product(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """bfloat16 factors, sums in float32, one rounding to the type of `out`: as the vendor's library on CUDA."""
    return out.copy_(torch.mm(hidden.float(), weight.float().t()))
