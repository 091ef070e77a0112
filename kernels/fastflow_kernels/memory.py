"""Says how much memory a call of flow_loss takes beside its inputs, before it is made: for planning, and for tests.

`flow_loss_workspace` has it on CUDA, for the implementations that keep one block (triton/projectors.py). It is exact
for the tile that it is told and without token statistics; another tile moves it by some bytes a row and tile. It leaves
out small things, a few bytes a row or sequence, and what the vendor's library takes once for all calls. On a CPU
`cpu_block_rows` has the largest part, the block of logits.
"""

import itertools
from typing import NamedTuple

import torch

from fastflow_kernels.block_budget import BUFFER_QUANTUM, cuda_block_rows, default_block_rows
from fastflow_kernels.blocks import sequence_blocks
from fastflow_kernels.head_gradient import finished_dtype, head_sum
from fastflow_kernels.matmul import accumulator_dtype, cpu_multiplies_bfloat16

__all__ = ["Workspace", "cpu_block_rows", "cpu_multiplies_bfloat16", "flow_loss_workspace"]

STATISTICS_BYTES = 4  # of a row and a tile of the projection: a total
FLOAT32 = 4


class Workspace(NamedTuple):
    """Memory of a call by part, in bytes; a part that the call does not need is 0."""

    block: int  # a block of logits, or of their exponentials
    statistics: int  # of its rows and tiles
    hidden_gradient: int  # before it stands there, the hidden states that the head's gradient multiplies
    head_gradient: int  # as it leaves the op
    head_sum: int  # over blocks, where that has another type
    long_sum: int  # the same for sequences that are longer than a block
    block_count: int

    @property
    def in_blocks(self) -> int:
        """Alive while the blocks go through; a single one's statistics are gone before the head's gradient is made."""
        of_head = (self.head_sum or self.head_gradient) + self.long_sum
        beside = max(self.statistics, of_head) if self.block_count == 1 else self.statistics + of_head
        return self.block + self.hidden_gradient + beside

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
    accumulates: bool = False,
    block_bytes: int | None = None,
    block_rows: int | None = None,
    tile_vocabulary: int = 256,
) -> Workspace:
    """Compute the memory of one call on CUDA, for hidden states (N, D) and a head that is neither padded nor sharded.

    Args:
        boundaries: cu_seqlens as a host list: S+1 row offsets, the last of which is N.
        width: D.
        vocabulary: V, rows of the head.
        parameter_dtype: type of the head.
        factor_dtype: type in which hidden states and head are multiplied.
        entry_bytes: bytes of a row and vocabulary entry of a block; None for the size of a factor, as the
            implementations `fused` and `hopper` have it.
        trains_head: whether the head's gradient is needed.
        accumulates: whether it goes into a sum of the caller's, as `accumulate_into` has it.
        block_bytes, block_rows: as in `flow_loss`.
        tile_vocabulary: columns of a tile of the projection: 256 in `fused` on sm_90 without a soft-cap, 192 in
            `hopper`, 128 or 64 elsewhere (tiles.py).

    Returns:
        Workspace, in bytes.

    >>> flow_loss_workspace([0, 4096, 8192], 4096, 128256).peak
    3286237184
    >>> flow_loss_workspace([0, 4096, 8192], 4096, 128256, accumulates=True).peak
    2251980800
    """
    entry_bytes = entry_bytes or factor_dtype.itemsize
    if accumulates:
        parameter_dtype = accumulator_dtype(factor_dtype)  # that of the sum, whose memory is not the call's
    head = head_sum(width, parameter_dtype, factor_dtype, entry_bytes) if trains_head else None
    longest = max((stop - start for start, stop in itertools.pairwise(boundaries)), default=0)
    rows = block_rows or cuda_block_rows(vocabulary, entry_bytes, boundaries[-1], longest, head, block_bytes)
    blocks = sequence_blocks(boundaries, rows)
    most = max((block.row_count for block in blocks), default=0)
    returns_head = trains_head and not accumulates
    finished = vocabulary * width * finished_dtype(parameter_dtype, factor_dtype).itemsize if returns_head else 0
    is_summed = head is not None and head.is_rounded and len(blocks) != 1
    return Workspace(
        block=(most + -most % BUFFER_QUANTUM) * (vocabulary + -vocabulary % 8) * entry_bytes,
        statistics=most * -(-vocabulary // tile_vocabulary) * STATISTICS_BYTES,
        hidden_gradient=boundaries[-1] * width * FLOAT32,
        head_gradient=finished,
        head_sum=vocabulary * width * FLOAT32 if is_summed else 0,
        long_sum=vocabulary * width * FLOAT32 if head is not None and any(block.is_part for block in blocks) else 0,
        block_count=len(blocks),
    )


def cpu_block_rows(vocabulary: int, factor_bytes: int, *, head_gradient_bytes: int = 0) -> int:
    """Rows of a block of logits of `flow_loss` on a CPU, where the caller names none.

    Args:
        vocabulary: V, rows of the head.
        factor_bytes: bytes of a number in the type of the products: 2 where hidden states and head are bfloat16 and
            `cpu_multiplies_bfloat16`, else 4 (8 for float64).
        head_gradient_bytes: bytes of the head's gradient in the type of its sum, float32 (float64); 0 where the head is
            not trained.

    >>> cpu_block_rows(152064, factor_bytes=4, head_gradient_bytes=4 * 1024 * 152064)
    512
    """
    return default_block_rows(vocabulary, "cpu", factor_bytes, head_gradient_bytes)
