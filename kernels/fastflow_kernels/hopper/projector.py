"""A block of rows through the head on Hopper: as triton/projectors.py has it, but for QuACK's product."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.hopper.tiles import TILE, parts_of, tile_count
from fastflow_kernels.tiles import has_aligned_rows
from fastflow_kernels.triton.logit import bits_per_logit
from fastflow_kernels.triton.projectors import FusedProjector, Totals


class HopperProjector(FusedProjector):
    """QuACK's product on CUDA, its emulation elsewhere; the kernels behind it are Triton's on both."""

    def __init__(self, head: Head, most_rows: int):
        super().__init__(head, most_rows)
        self._parts = parts_of(head.vocabulary)

    def _totals(
        self, hidden: Tensor, columns: Tensor, target_logit: Tensor, matrix: Tensor | None, *, with_moments: bool
    ) -> Totals:
        """QuACK's epilogue has no moments: the projection that is asked for them is Triton's."""
        if with_moments:
            return super()._totals(hidden, columns, target_logit, matrix, with_moments=True)
        row_count = len(hidden)
        if not has_aligned_rows(hidden):
            hidden = hidden.clone(memory_format=torch.contiguous_format)
        # each part's at a multiple of 16 bytes
        own_columns = columns.new_empty((len(self._parts), row_count + -row_count % 4), dtype=torch.int32)[
            :, :row_count
        ]
        for part, own in zip(self._parts, own_columns, strict=True):
            torch.sub(columns, part.start, out=own)
        total = target_logit.new_empty(row_count, tile_count(self.head.vocabulary))
        target_product = torch.empty_like(target_logit)
        if row_count:
            project = _project_on(hidden.device)
            scale = bits_per_logit(self.head)
            project(
                hidden, self.head.weight, self._parts, own_columns, scale, target_logit, total, target_product, matrix
            )
        return Totals(total.t(), TILE, target_product)


def _project_on(device: torch.device) -> Callable[..., None]:
    if device.type == "cpu":
        from fastflow_kernels.hopper.emulation import project
    else:
        from fastflow_kernels.hopper.project import project
    return project
