"""Takes a block of rows through the head with Triton, in two ways; projector.py says what they share."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.block_budget import BUFFER_QUANTUM, cuda_block_rows
from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import head_sum
from fastflow_kernels.matmul import accumulator_dtype, direction_dtype
from fastflow_kernels.matmul import project as library_project
from fastflow_kernels.moments import Moments
from fastflow_kernels.projector import Exponentials, Panel, Projector
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.tiles import Tile, candidates_for, tile_for
from fastflow_kernels.tilt import Tilt
from fastflow_kernels.triton import autotune
from fastflow_kernels.triton.combine import combine
from fastflow_kernels.triton.excess import Totals
from fastflow_kernels.triton.finish import finish
from fastflow_kernels.triton.logit import NATS_PER_BIT, bits_per_logit
from fastflow_kernels.triton.project import project, project_tilted
from fastflow_kernels.triton.rebase import rebase_and_finish_
from fastflow_kernels.triton.row import row_pass
from fastflow_kernels.triton.row_tilt import tilt_rows
from fastflow_kernels.triton.target_logit import target_logits

FORWARD_ROWS = 16384  # the totals of these take 4 * 16384 * V / 256 bytes: 39 MB at V = 152,000


class TritonProjector(Projector):
    """Holds the memory that all blocks share."""

    def __init__(self, head: Head, most_rows: int):
        super().__init__(head, most_rows)
        self._buffer: Tensor | None = None

    @classmethod
    def _gradient_rows(
        cls, head: Head, weight: Tensor | None, row_count: int, longest: int, block_bytes: int | None
    ) -> int:
        factors, (vocabulary, width) = head.weight.dtype, head.weight.shape
        entry_bytes = cls.entry_bytes(factors)
        total = None if weight is None else head_sum(width, weight.dtype, factors, entry_bytes)
        return cuda_block_rows(vocabulary, entry_bytes, row_count, longest, total, block_bytes)

    @classmethod
    def _forward_rows(cls, head: Head, block_bytes: int | None) -> int:
        return cuda_block_rows(head.vocabulary, cls.entry_bytes(head.weight.dtype), 0, 0, None, block_bytes)

    @staticmethod
    @abstractmethod
    def entry_bytes(factor_dtype: torch.dtype) -> int:
        """Bytes of block memory per row and vocabulary entry."""

    def _block(self, row_count: int, dtype: torch.dtype) -> Tensor:
        """(R, V) of the shared memory; rows start at multiples of 16 bytes, and a TMA store may overwrite the padding
        between them."""
        if self._buffer is None:
            width = -(-self.head.vocabulary // 8) * 8
            rows = self.most_rows
            if self.head.weight.device.type != "cpu":
                rows += -rows % BUFFER_QUANTUM
            self._buffer = self.head.weight.new_empty(rows, width, dtype=dtype)
        return self._buffer[:row_count, : self.head.vocabulary]

    def _finish_logprobs(self, statistics: RowStatistics, columns: Tensor, out: Tensor) -> None:
        finish(statistics, self.head, columns, out, None, None)

    def _finish_directions(
        self, exponentials: Exponentials, statistics: RowStatistics, columns: Tensor, out: Tensor
    ) -> Tensor:
        self._rebase_(exponentials, statistics.reference)
        factor = torch.empty_like(out)
        finish(statistics, self.head, columns, out, factor, exponentials.panels[0].matrix)
        return factor


class FusedProjector(TritonProjector):
    """A Triton product whose epilogue leaves statistics and exponentials: logits never reach memory."""

    class Block(NamedTuple):
        """What `_finish_directions` needs to know of a block's exponentials."""

        totals: Totals
        hidden: Tensor  # (R, D)

    @staticmethod
    def entry_bytes(factor_dtype: torch.dtype) -> int:
        return factor_dtype.itemsize

    @classmethod
    def _forward_rows(cls, head: Head, block_bytes: int | None) -> int:
        return FORWARD_ROWS

    def _statistics(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> RowStatistics:
        return self._project(hidden, columns, None, with_moments=with_moments)[0]

    def _exponentials(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> Exponentials:
        matrix = self._block(hidden.shape[0], direction_dtype(self.head.weight.dtype))
        return Exponentials([Panel(0, matrix)], *self._project(hidden, columns, matrix, with_moments=with_moments))

    def _project(
        self, hidden: Tensor, columns: Tensor, matrix: Tensor | None, *, with_moments: bool
    ) -> tuple[RowStatistics, "FusedProjector.Block"]:
        target_logit, totals = self._totals(hidden, columns, matrix, with_moments=with_moments)
        statistics = self._combined(totals, target_logit, target_logit, hidden, columns)
        return statistics, self.Block(totals, hidden)

    def _combined(
        self, totals: Totals, reference: Tensor, target_logit: Tensor, hidden: Tensor, columns: Tensor
    ) -> RowStatistics:
        """reference: (R,) bits, what the totals are measured against."""
        head, moments = self.head, None
        rows = combine(totals, reference, hidden, head, columns)
        if rows.weighted is not None and rows.logit_sum is not None:  # logits of RowStatistics are in bits here
            logit_sum = rows.logit_sum * bits_per_logit(head)
            moments = Moments(rows.weighted * NATS_PER_BIT, logit_sum, head.vocabulary)
        return RowStatistics(target_logit, rows.reference, rows.total, NATS_PER_BIT, moments)

    def _totals(
        self, hidden: Tensor, columns: Tensor, matrix: Tensor | None, *, with_moments: bool
    ) -> tuple[Tensor, Totals]:
        """The targets' logits (R,), bits, and the totals of each tile; and the exponentials, if there is a matrix."""
        target_logit = self._target_logit(hidden, columns)
        launch = partial(
            project, hidden, self.head, columns, target_logit, exponentials=matrix, with_moments=with_moments
        )
        tile = self._choose_tile(hidden, launch, stores=matrix is not None, has_moments=with_moments)
        return target_logit, launch(tile=tile)

    def _tilted(self, hidden: Tensor, columns: Tensor, tilt: Tilt) -> tuple[list[Panel], RowStatistics, Tilt]:
        """A gradient of the entropy takes a second product in float32, ahead of the one that stores the direction.

        Half precision spares it: rows of nearly no entropy whose target is improbable lose digits of their gradient.
        """
        matrix = self._block(hidden.shape[0], direction_dtype(self.head.weight.dtype))
        statistics = tilt.statistics(self._target_logit(hidden, columns), NATS_PER_BIT)
        if tilt.upstream_entropy is not None and self.head.weight.dtype == torch.float32:
            statistics = self._measured(hidden, columns, statistics).merged(self.head.shard)
            tilt = tilt.measured(statistics)
        constant, slope = tilt.affine(statistics)
        affine = constant, slope * NATS_PER_BIT
        launch = partial(
            project_tilted, hidden, self.head, columns, statistics.reference, direction=matrix, affine=affine
        )
        launch(tile=self._choose_tile(hidden, launch, stores=True, has_tilt=True))
        return [Panel(0, matrix)], statistics, tilt

    def _measured(self, hidden: Tensor, columns: Tensor, statistics: RowStatistics) -> RowStatistics:
        """Statistics with moments, against the reference of these, above which no logit stands far."""
        reference = statistics.reference
        launch = partial(project, hidden, self.head, columns, reference, exponentials=None, with_moments=True)
        totals = launch(tile=self._choose_tile(hidden, launch, stores=False, has_moments=True))
        return self._combined(totals, reference, statistics.target_logit, hidden, columns)

    def _target_logit(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """(R,) over all shards, bits."""
        head, found = self.head, target_logits(hidden, self.head, columns)
        return found if head.shard is None else head.shard.target_logit(found, head.holds(columns))

    def _choose_tile(self, hidden: Tensor, launch: Callable[..., object], **use: bool) -> Tile:
        """use: what of TileKey depends on the call."""
        head = self.head
        use |= {"has_bias": head.bias is not None, "has_softcap": head.softcap is not None}
        default = tile_for(hidden, head.weight, **use)
        if not head.weight.is_cuda or not autotune.is_requested():
            return default
        return autotune.fastest(
            (head.weight.device, head.weight.dtype, head.weight.shape, *sorted(use.items())),
            lambda tile: launch(tile=tile),
            (default, *candidates_for(head.weight)),
        )

    def _finish_directions(
        self, exponentials: Exponentials, statistics: RowStatistics, columns: Tensor, out: Tensor
    ) -> Tensor:
        totals, hidden = exponentials.block
        factor = torch.empty_like(out)
        matrix = exponentials.panels[0].matrix
        rebase_and_finish_(matrix, totals, statistics, hidden, self.head, columns, out, factor)
        return factor


class RowsProjector(TritonProjector):
    """The vendor library's product, then one Triton kernel over its rows.

    By the type of the factors, with the bytes of an entry of a block:

        float32    4    logits in float32, exponentials in their place
        bfloat16   2    logits rounded once to bfloat16, as an eager head's are, and exponentials in their place; the
                        target's logit apart, in float32. row.py says what the rounding costs
        float16    6    logits in float32: float16 ends at 65,504, and the library writes products of its factors in
                        no third type. Exponentials in bfloat16 beside them
    """

    @classmethod
    def entry_bytes(cls, factor_dtype: torch.dtype) -> int:
        logits, matrix = cls._logit_dtype(factor_dtype), direction_dtype(factor_dtype)
        return logits.itemsize + (0 if matrix == logits else matrix.itemsize)

    @staticmethod
    def _logit_dtype(factor_dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if factor_dtype == torch.bfloat16 else accumulator_dtype(factor_dtype)

    def __init__(self, head: Head, most_rows: int):
        super().__init__(head, most_rows)
        self._narrow: Tensor | None = None

    def _statistics(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> RowStatistics:
        given = self._exact_target_logit(hidden, columns)
        return self._row_pass(self._logits(hidden), columns, None, given, with_moments=with_moments)

    def _exponentials(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> Exponentials:
        logits = self._logits(hidden)
        matrix = self._matrix_for(logits)
        given = self._exact_target_logit(hidden, columns)
        statistics = self._row_pass(logits, columns, matrix, given, with_moments=with_moments)
        return Exponentials([Panel(0, matrix)], statistics)

    def _tilted(self, hidden: Tensor, columns: Tensor, tilt: Tilt) -> tuple[list[Panel], RowStatistics, Tilt]:
        logits = self._logits(hidden)
        matrix = self._matrix_for(logits)
        given = self._exact_target_logit(hidden, columns)
        statistics = self._row_pass(logits, columns, None, given, with_moments=True).merged(self.head.shard)
        tilt = tilt.measured(statistics)
        tilt_rows(logits, self.head, statistics.reference, tilt.affine(statistics), matrix)
        return [Panel(0, matrix)], statistics, tilt

    def _logits(self, hidden: Tensor) -> Tensor:
        out = self._block(hidden.shape[0], self._logit_dtype(self.head.weight.dtype))
        return library_project(hidden, self.head.weight, out=out)

    def _exact_target_logit(self, hidden: Tensor, columns: Tensor) -> Tensor | None:
        """(R,) float32, nats, of targets among this head's columns; None where the logits themselves are float32."""
        if self._logit_dtype(self.head.weight.dtype) == torch.float32:
            return None
        return target_logits(hidden, self.head, columns).mul_(NATS_PER_BIT)

    def _matrix_for(self, logits: Tensor) -> Tensor:
        """The logits' own memory, or a second block in the type of the products."""
        dtype = direction_dtype(self.head.weight.dtype)
        if dtype == logits.dtype:
            return logits
        if self._narrow is None:
            assert self._buffer is not None, "logits stand in the shared memory"
            self._narrow = torch.empty_like(self._buffer, dtype=dtype)
        return self._narrow[: logits.shape[0], : logits.shape[1]]

    def _row_pass(
        self,
        logits: Tensor,
        columns: Tensor,
        matrix: Tensor | None,
        target_logit: Tensor | None = None,
        *,
        with_moments: bool = False,
    ) -> RowStatistics:
        """target_logit: (R,) nats; None for that among the logits."""
        own_logit, reference, total, *sums = row_pass(
            logits, self.head, columns, matrix, target_logit, with_moments=with_moments
        )
        moments = Moments(sums[0], sums[1], self.head.vocabulary) if with_moments else None
        return self._over_shards(RowStatistics(own_logit, reference, total, moments=moments), columns)

    def _over_shards(self, statistics: RowStatistics, columns: Tensor) -> RowStatistics:
        """With the target's logit of the rank that holds it."""
        head = self.head
        if head.shard is None:
            return statistics
        found = head.shard.target_logit(statistics.target_logit, head.holds(columns))
        return statistics._replace(target_logit=found)
