"""A block of rows through the head on Hopper: as triton/projectors.py has it, but for QuACK's product."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.hopper.tiles import TILE, parts_of, tile_count
from fastflow_kernels.tiles import has_aligned_rows
from fastflow_kernels.triton.logit import bits_per_logit
from fastflow_kernels.triton.projectors import FusedProjector, Totals
from fastflow_kernels.triton.target_logit import target_logits


class HopperProjector(FusedProjector):
    """QuACK's product on CUDA, its emulation elsewhere; the kernels behind it are Triton's on both."""

    def __init__(self, head: Head, most_rows: int):
        super().__init__(head, most_rows)
        self._parts = parts_of(head.vocabulary)

    def _totals(
        self, hidden: Tensor, columns: Tensor, matrix: Tensor | None, *, with_moments: bool
    ) -> tuple[Tensor, Totals]:
        """QuACK's epilogue has no moments: the projection that is asked for them is Triton's."""
        if with_moments:
            return super()._totals(hidden, columns, matrix, with_moments=True)
        row_count, parts = len(hidden), self._parts
        if not has_aligned_rows(hidden):
            hidden = hidden.clone(memory_format=torch.contiguous_format)
        # each part's at a multiple of 16 bytes
        own_columns = columns.new_empty((len(parts), row_count + -row_count % 4), dtype=torch.int32)[:, :row_count]
        target_logit = target_logits(hidden, self.head, columns, own_columns, part_width=parts[0].stop)
        total = target_logit.new_empty(row_count, tile_count(self.head.vocabulary))
        target_product = torch.empty_like(target_logit)
        if row_count:
            project = _project_on(hidden.device)
            scale = bits_per_logit(self.head)
            project(hidden, self.head.weight, parts, own_columns, scale, target_logit, total, target_product, matrix)
        return target_logit, Totals(total.t(), TILE, target_product)


def _project_on(device: torch.device) -> Callable[..., None]:
    if device.type == "cpu":
        from fastflow_kernels.hopper.emulation import project
    else:
        from fastflow_kernels.hopper.project import project
    return project
