"""A block of rows through the head: log-probs, and the direction of their gradient.

What every implementation shares; one class each says how (torch_projector.py, native_projector.py and
gpu/projectors.py).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.panel import Panel
from fastflow_kernels.row_statistics import RowStatistics


class Exponentials(NamedTuple):
    """exp(logit - reference) of a block, times the soft-cap's slope; 0 at the target."""

    panels: list[Panel]  # of (R, V)
    tile_reference: Tensor  # (T, R): what each tile of columns was measured against
    statistics: RowStatistics  # of this head's columns; target_logit over all shards


class Directions(NamedTuple):
    """d logprob_r / d (hidden @ weight^T)_r = factor_r * matrix_r."""

    panels: list[Panel]  # of the matrix (R, V), valid until the projector's next block
    logprob: Tensor  # (R,) nats
    factor: Tensor  # (R,)


class Projector(ABC):
    """Takes blocks of at most `most_rows` rows through one head."""

    def __init__(self, head: Head, most_rows: int):
        self.head = head
        self.most_rows = most_rows

    @classmethod
    def default_rows(cls, head: Head, *, with_gradient: bool, with_weight: bool) -> int:
        """Rows of a block when the caller names none; with_weight: the gradient of the weight stands beside it.

        The ranks of a sharded head meet once a block, so all of them take the largest shard's.
        """
        head = head.like_the_largest_shard()
        return cls._gradient_rows(head, with_weight=with_weight) if with_gradient else cls._forward_rows(head)

    @classmethod
    @abstractmethod
    def _gradient_rows(cls, head: Head, *, with_weight: bool) -> int:
        """For blocks whose gradient is wanted."""

    @classmethod
    @abstractmethod
    def _forward_rows(cls, head: Head) -> int:
        """For blocks of which only log-probs are wanted."""

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
        for panel in exponentials.panels:
            self._set_target_entries_(panel, columns, statistics)
        return Directions(exponentials.panels, statistics.logprob(), statistics.factor() / head.temperature)

    @abstractmethod
    def _statistics(self, hidden: Tensor, columns: Tensor) -> RowStatistics:
        """Forward only."""

    @abstractmethod
    def _exponentials(self, hidden: Tensor, columns: Tensor) -> Exponentials:
        """With the matrix that the gradient needs."""

    def _settle_(self, exponentials: Exponentials, reference: Tensor) -> None:
        """Brings the matrix to the row's final reference, which other shards may have raised."""
        if self.head.shard is not None:
            scale = exponentials.statistics.ratio_to(reference).unsqueeze(1)
            for panel in exponentials.panels:
                panel.matrix.mul_(scale)

    def _set_target_entries_(self, panel: Panel, columns: Tensor, statistics: RowStatistics) -> None:
        head, matrix = self.head, panel.matrix
        entry = -statistics.sum_of_others
        if head.softcap is not None:
            capped = statistics.target_logit * (statistics.scale * head.temperature)
            entry = entry * (1.0 - (capped / head.softcap).square())
        row, column = torch.arange(len(columns), device=columns.device), columns - panel.start
        entry = entry.to(matrix.dtype)
        is_here = (column >= 0) & (column < matrix.shape[1])
        column = column.clamp(0, matrix.shape[1] - 1)
        # indexing, since scatter_ copies all of a bfloat16 matrix on the CPU
        matrix[row, column] = torch.where(is_here, entry, matrix[row, column])
