"""Takes a block of rows through the head: to log-probs, and to the direction of their gradient.

This is what every implementation shares; one class each says how (torch_projector.py, cpu/projector.py,
triton/projectors.py, hopper/projector.py and cuda/projector.py).
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.tilt import Tilt


class Panel(NamedTuple):
    """Columns [start, start + C) of a block's (R, V) matrix: each panel can go as soon as it is used up."""

    start: int
    matrix: Tensor  # (R, C)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.matrix.shape[1])


class Exponentials(NamedTuple):
    """exp(logit - reference) of a block, times the soft-cap's slope; 0 at the target."""

    panels: list[Panel]  # of (R, V)
    statistics: RowStatistics  # of this head's columns; target_logit over all shards
    block: Any = None  # what the projector needs to rebase them


class Directions(NamedTuple):
    """d logprob_r / d (hidden @ weight^T)_r = factor_r * matrix_r."""

    panels: list[Panel]  # of the matrix (R, V), valid until the projector's next block
    factor: Tensor  # (R,)


class Projector(ABC):
    """Takes blocks of at most `most_rows` rows through one head."""

    def __init__(self, head: Head, most_rows: int):
        self.head = head
        self.most_rows = most_rows

    @classmethod
    def default_rows(
        cls,
        head: Head,
        *,
        row_count: int,
        with_gradient: bool,
        weight: Tensor | None = None,
        longest: int = 0,
        block_bytes: int | None = None,
    ) -> int:
        """Return the rows of a block when the caller names none.

        row_count: of the call. weight: the parameter, where its gradient is needed. longest: rows of the longest
        sequence, which is best not cut. block_bytes: memory of a block; None for the device's default. The ranks
        of a sharded head meet once a block, so all of them take the largest shard's.
        """
        head = head.like_the_largest_shard()
        if not with_gradient:
            return cls._forward_rows(head, block_bytes)
        return cls._gradient_rows(head, weight, row_count, longest, block_bytes)

    @classmethod
    @abstractmethod
    def _gradient_rows(
        cls, head: Head, weight: Tensor | None, row_count: int, longest: int, block_bytes: int | None
    ) -> int:
        """The same for blocks whose gradient is wanted."""

    @classmethod
    @abstractmethod
    def _forward_rows(cls, head: Head, block_bytes: int | None) -> int:
        """The same for blocks of which only log-probs are wanted."""

    def logprobs(
        self, hidden: Tensor, targets: Tensor, out: Tensor, statistics_out: TokenStatistics | None = None
    ) -> None:
        """Fill out (R,) with log-probs of the targets, nats; and the statistics (R,), where they are asked for.

        hidden: (R, D) in the type of the head; targets: (R,) int64, numbered over all shards.
        """
        columns = self.head.columns(targets)
        statistics = self._statistics(hidden, columns, with_moments=statistics_out is not None)
        statistics = statistics.merged(self.head.shard)
        self._finish_logprobs(statistics, columns, out)
        _hand_out(statistics, statistics_out)

    def directions(
        self, hidden: Tensor, targets: Tensor, out: Tensor, statistics_out: TokenStatistics | None = None
    ) -> Directions:
        """Fill out (R,) with log-probs, and give the direction of their gradient. The rest as in `logprobs`."""
        columns = self.head.columns(targets)
        exponentials = self._exponentials(hidden, columns, with_moments=statistics_out is not None)
        statistics = exponentials.statistics.merged(self.head.shard)
        factor = self._finish_directions(exponentials, statistics, columns, out)
        _hand_out(statistics, statistics_out)
        return Directions(exponentials.panels, factor)

    def tilted_directions(self, hidden: Tensor, targets: Tensor, tilt: Tilt) -> Directions:
        """Give the gradient of log-probs, entropies and logsumexps together, with their upstream gradients in it."""
        columns = self.head.columns(targets)
        panels, statistics, tilt = self._tilted(hidden, columns, tilt)
        self._set_target_entries_(panels, columns, statistics, tilt.target_entry(statistics))
        return Directions(panels, statistics.factor() / self.head.temperature)

    @abstractmethod
    def _statistics(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> RowStatistics:
        """Take what log-probs need, and keep no matrix."""

    @abstractmethod
    def _exponentials(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> Exponentials:
        """Take the same, and make the matrix that the gradient needs."""

    @abstractmethod
    def _tilted(self, hidden: Tensor, columns: Tensor, tilt: Tilt) -> tuple[list[Panel], RowStatistics, Tilt]:
        """Make panels of the tilted direction, with any entries at the targets.

        Returns the statistics that it is measured against, and the tilt as they have made it more exact (tilt.py).
        """

    def _rebase_(self, exponentials: Exponentials, reference: Tensor) -> None:
        """Bring the matrix to the row's final reference, which other shards may have raised."""
        if self.head.shard is not None:
            scale = exponentials.statistics.ratio_to(reference).unsqueeze(1)
            for panel in exponentials.panels:
                panel.matrix.mul_(scale)

    def _finish_logprobs(self, statistics: RowStatistics, columns: Tensor, out: Tensor) -> None:
        """Fill out (R,) with log-probs."""
        out.copy_(statistics.logprob())

    def _finish_directions(
        self, exponentials: Exponentials, statistics: RowStatistics, columns: Tensor, out: Tensor
    ) -> Tensor:
        """Fill out (R,) with log-probs, and make directions of exponentials: against the reference of these
        statistics, which are over all shards, with the entries at the targets.

        Returns the factor (R,) of the directions.
        """
        self._rebase_(exponentials, statistics.reference)
        out.copy_(statistics.logprob())
        self._set_target_entries_(exponentials.panels, columns, statistics, -statistics.sum_of_others)
        return statistics.factor() / self.head.temperature

    def _set_target_entries_(
        self, panels: list[Panel], columns: Tensor, statistics: RowStatistics, entry: Tensor
    ) -> None:
        """entry: (R,), ahead of the soft-cap's slope."""
        head = self.head
        if head.softcap is not None:
            capped = statistics.target_logit * (statistics.scale * head.temperature)
            entry = entry * (1.0 - (capped / head.softcap).square())
        row = torch.arange(len(columns), device=columns.device)
        for panel in panels:
            matrix, column = panel.matrix, columns - panel.start
            is_here = (column >= 0) & (column < matrix.shape[1])
            column = column.clamp(0, matrix.shape[1] - 1)
            # indexing, since scatter_ copies all of a bfloat16 matrix on the CPU
            matrix[row, column] = torch.where(is_here, entry.to(matrix.dtype), matrix[row, column])


def _hand_out(statistics: RowStatistics, out: TokenStatistics | None) -> None:
    if out is not None:
        for place, values in zip(out, statistics.token_statistics(), strict=True):
            place.copy_(values)
