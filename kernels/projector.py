"""A block of rows through the head: log-probs, and the direction of their gradient.

What every implementation shares; one class each says how (torch_projector.py, and gpu/projectors.py).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.blocks import default_block_rows
from fastflow_kernels.head import Head
from fastflow_kernels.matmul import accumulator_dtype
from fastflow_kernels.row_statistics import RowStatistics


class Exponentials(NamedTuple):
    """exp(logit - reference) of a block, times the soft-cap's slope; 0 at the target."""

    matrix: Tensor  # (R, V)
    tile_reference: Tensor  # (T, R): what each tile of columns was measured against
    statistics: RowStatistics  # of this head's columns; target_logit over all shards


class Directions(NamedTuple):
    """d logprob_r / d (hidden @ weight^T)_r = factor_r * matrix_r."""

    matrix: Tensor  # (R, V), valid until the projector's next block
    logprob: Tensor  # (R,) nats
    factor: Tensor  # (R,)


class Projector(ABC):
    """Takes blocks of at most `most_rows` rows through one head; holds the memory that they share."""

    def __init__(self, head: Head, most_rows: int):
        self.head = head
        self.most_rows = most_rows
        self._buffer: Tensor | None = None

    @classmethod
    def default_rows(cls, head: Head) -> int:
        """Rows of a block when the caller names none."""
        return default_block_rows(head.vocabulary, head.weight.device.type, cls.entry_bytes(head.weight.dtype))

    @classmethod
    def default_forward_rows(cls, head: Head) -> int:
        """The same where no gradient will be asked for."""
        return cls.default_rows(head)

    @staticmethod
    def entry_bytes(factor_dtype: torch.dtype) -> int:
        """Bytes of block memory per row and vocabulary entry."""
        return accumulator_dtype(factor_dtype).itemsize

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(R,) log-probs of the targets, numbered over all shards; hidden (R, D) in the type of the head."""
        statistics = self._statistics(hidden, self.head.columns(targets))
        return statistics.merged(self.head.shard).logprob()

    def directions(self, hidden: Tensor, targets: Tensor) -> Directions:
        """Log-probs, and the direction of their gradient."""
        head, columns = self.head, self.head.columns(targets)
        exponentials = self._exponentials(hidden, columns)
        statistics = exponentials.statistics.merged(head.shard)
        self._settle_(exponentials, statistics.reference)
        self._set_target_entries_(exponentials.matrix, columns, statistics)
        return Directions(exponentials.matrix, statistics.logprob(), statistics.factor() / head.temperature)

    @abstractmethod
    def _statistics(self, hidden: Tensor, columns: Tensor) -> RowStatistics:
        """Forward only."""

    @abstractmethod
    def _exponentials(self, hidden: Tensor, columns: Tensor) -> Exponentials:
        """With the matrix that the gradient needs."""

    def _settle_(self, exponentials: Exponentials, reference: Tensor) -> None:
        """Brings the matrix to the row's final reference, which other shards may have raised."""
        if self.head.shard is not None:
            exponentials.matrix.mul_((exponentials.tile_reference[0] - reference).exp().unsqueeze(1))

    def _set_target_entries_(self, matrix: Tensor, columns: Tensor, statistics: RowStatistics) -> None:
        head = self.head
        entry = -statistics.sum_of_others
        if head.softcap is not None:
            entry = entry * (1.0 - (statistics.target_logit * (head.temperature / head.softcap)).square())
        column, entry = columns.unsqueeze(1), entry.to(matrix.dtype).unsqueeze(1)
        if head.shard is not None:
            is_here = head.holds(column)
            column = column.clamp(0, head.vocabulary - 1)
            entry = torch.where(is_here, entry, matrix.gather(1, column))
        matrix.scatter_(1, column, entry)

    def _block(self, row_count: int, dtype: torch.dtype) -> Tensor:
        """(R, V) of the memory that all blocks share; rows start at multiples of 16 bytes."""
        if self._buffer is None:
            width = -(-self.head.vocabulary // 8) * 8
            self._buffer = self.head.weight.new_empty(self.most_rows, width, dtype=dtype)
        return self._buffer[:row_count, : self.head.vocabulary]
