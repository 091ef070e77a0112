"""How much memory a call of flow_loss takes beside its inputs, before it is made: for planning, and for its tests.

On CUDA, for the implementations that keep one block (triton/projectors.py). Small things are left out, a few bytes a
row or sequence, and so is what the vendor's library takes once for all calls.
"""

import itertools
from typing import NamedTuple

import torch

from fastflow_kernels.blocks import BUFFER_QUANTUM, cuda_block_rows, sequence_blocks
from fastflow_kernels.head_gradient import finished_dtype, head_sum

STATISTICS_BYTES = 4  # of a row and a tile of the projection: a total
FLOAT32 = 4


class Workspace(NamedTuple):
    """Bytes. What a part is not needed for is 0."""

    block: int  # a block of logits, or of their exponentials
    statistics: int  # of its rows and tiles
    scaled_rows: int  # its hidden states, times what the head's gradient takes of them
    hidden_gradient: int
    head_gradient: int  # as it leaves the op
    head_sum: int  # over blocks, where that has another type
    long_sum: int  # the same for sequences that are longer than a block

    @property
    def in_blocks(self) -> int:
        """Alive while the blocks go through; the statistics of one are gone before its rows are scaled."""
        of_head = self.head_sum or self.head_gradient
        beside = max(self.statistics, self.scaled_rows)
        return self.block + beside + self.hidden_gradient + of_head + self.long_sum

    @property
    def at_end(self) -> int:
        """Alive while the sum is rounded."""
        return self.hidden_gradient + self.head_gradient + self.head_sum

    @property
    def peak(self) -> int:
        return max(self.in_blocks, self.at_end)


def flow_loss_workspace(
    boundaries: list[int],
    width: int,
    vocabulary: int,
    *,
    parameter_dtype: torch.dtype = torch.bfloat16,
    factor_dtype: torch.dtype = torch.bfloat16,
    entry_bytes: int | None = None,
    trains_head: bool = True,
    block_bytes: int | None = None,
    block_rows: int | None = None,
    tile_vocabulary: int = 256,
) -> Workspace:
    """For hidden states (N, D) and a head (V, D) that is neither padded nor sharded.

    boundaries: cu_seqlens as a host list. parameter_dtype, factor_dtype: of the head, and of its products. entry_bytes:
    of a row and vocabulary entry of a block; None for the factors' size, as the implementation `fused` has it.
    trains_head: whether its gradient is needed. tile_vocabulary: columns of a tile of the projection.

    >>> flow_loss_workspace([0, 4096, 8192], 4096, 128256).peak
    3395420160
    """
    entry_bytes = entry_bytes or factor_dtype.itemsize
    head = head_sum(width, parameter_dtype, factor_dtype, entry_bytes) if trains_head else None
    longest = max((stop - start for start, stop in itertools.pairwise(boundaries)), default=0)
    rows = block_rows or cuda_block_rows(vocabulary, entry_bytes, boundaries[-1], longest, head, block_bytes)
    blocks = sequence_blocks(boundaries, rows)
    most = max((block.row_count for block in blocks), default=0)
    finished = vocabulary * width * finished_dtype(parameter_dtype, factor_dtype).itemsize if trains_head else 0
    is_summed = head is not None and head.is_rounded and len(blocks) != 1
    return Workspace(
        block=(most + -most % BUFFER_QUANTUM) * (vocabulary + -vocabulary % 8) * entry_bytes,
        statistics=most * -(-vocabulary // tile_vocabulary) * STATISTICS_BYTES,
        scaled_rows=most * width * factor_dtype.itemsize if trains_head else 0,
        hidden_gradient=boundaries[-1] * width * FLOAT32,
        head_gradient=finished,
        head_sum=vocabulary * width * FLOAT32 if is_summed else 0,
        long_sum=vocabulary * width * FLOAT32 if head is not None and any(block.is_part for block in blocks) else 0,
    )
