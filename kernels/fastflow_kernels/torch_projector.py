"""Takes a block of rows through the head on any device: torch's products, panel by panel, and two sweeps over each."""

import itertools
from typing import Protocol

import torch
from torch import Tensor

from fastflow_kernels import row_sweeps
from fastflow_kernels.block_budget import default_block_rows
from fastflow_kernels.head import Head
from fastflow_kernels.matmul import accumulator_dtype, product_dtype, project
from fastflow_kernels.moments import Moments
from fastflow_kernels.projector import Exponentials, Panel, Projector
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.tilt import Tilt

# On the CPU a panel for the gradient is large enough that malloc maps its memory and returns it when it goes (glibc
# does from 32 MiB on), and one that only statistics are taken of small enough to be swept while it is in the cache.
KEPT_PANEL_BYTES = 33 * 2**20
PASSING_PANEL_BYTES = 4 * 2**20
PASSING_ROWS = 2048


class Sweeps(Protocol):
    """Has the two sweeps over a panel; row_sweeps.py says what each does."""

    def row_maximum(self, products: Tensor, bias: Tensor | None, /) -> Tensor: ...

    def row_exponentials_(
        self,
        products: Tensor,
        bias: Tensor | None,
        /,
        *,
        softcap: float | None,
        scale: float,
        reference: Tensor,
        columns: Tensor,
        store: bool,
        with_moments: bool = False,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ...]: ...


class TorchProjector(Projector):
    """Plain PyTorch; cpu/projector.py has compiled sweeps in place of these."""

    @staticmethod
    def sweeps() -> Sweeps:
        """Whose two sweeps it is that go over a panel."""
        return row_sweeps

    @classmethod
    def _gradient_rows(
        cls, head: Head, weight: Tensor | None, row_count: int, longest: int, block_bytes: int | None
    ) -> int:
        beside = 0 if weight is None else head.weight.numel() * accumulator_dtype(head.weight.dtype).itemsize
        return default_block_rows(
            head.vocabulary, head.weight.device.type, cls._entry_bytes(head), beside, block_bytes=block_bytes
        )

    @classmethod
    def _forward_rows(cls, head: Head, block_bytes: int | None) -> int:
        if head.weight.device.type == "cpu" and block_bytes is None:
            return PASSING_ROWS
        return default_block_rows(
            head.vocabulary, head.weight.device.type, cls._entry_bytes(head), block_bytes=block_bytes
        )

    def _statistics(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> RowStatistics:
        """Each panel is measured against the largest logit so far, and gone before the next is made."""
        dtype = accumulator_dtype(hidden.dtype)
        reference = hidden.new_full((len(hidden),), -torch.inf, dtype=dtype)
        total, target_logit = torch.zeros_like(reference), torch.zeros_like(reference)
        moments = Moments.zeros(reference) if with_moments else None
        for part in self._column_ranges(len(hidden), PASSING_PANEL_BYTES):
            products = project(hidden, self.head.weight[part])
            raised = torch.maximum(reference, self._capped(self.sweeps().row_maximum(products, self._bias(part))))
            against = _finite(raised)
            sums = self._row_exponentials_(products, part, columns, against, store=False, with_moments=with_moments)
            del products
            ratio = ((reference - against) / self.head.temperature).exp()
            if moments is not None:
                shift = (_finite(reference) - against) / self.head.temperature
                moments = moments.rebased(total, shift, ratio).plus(sums[2], sums[3], part.stop - part.start)
            total = total * ratio + sums[0]
            target_logit += sums[1]
            reference = raised
        return self._as_statistics(hidden, columns, target_logit, reference, total, moments)

    def _exponentials(self, hidden: Tensor, columns: Tensor, *, with_moments: bool = False) -> Exponentials:
        panels, reference = self._panels(hidden)
        statistics = self._swept(panels, reference, hidden, columns, store=True, with_moments=with_moments)
        return Exponentials(panels, statistics)

    def _panels(self, hidden: Tensor) -> tuple[list[Panel], Tensor]:
        """Products of all columns, and each row's largest logit (R,)."""
        panels, maxima = [], []
        for part in self._column_ranges(len(hidden), KEPT_PANEL_BYTES):
            products = project(hidden, self.head.weight[part])
            maxima.append(self.sweeps().row_maximum(products, self._bias(part)))
            panels.append(Panel(part.start, products))
        return panels, self._capped(torch.stack(maxima).amax(dim=0))

    def _swept(
        self,
        panels: list[Panel],
        reference: Tensor,
        hidden: Tensor,
        columns: Tensor,
        *,
        store: bool,
        with_moments: bool,
    ) -> RowStatistics:
        total, target_logit = torch.zeros_like(reference), torch.zeros_like(reference)
        moments = Moments.zeros(reference) if with_moments else None
        for panel in panels:
            sums = self._row_exponentials_(
                panel.matrix, panel.columns, columns, _finite(reference), store=store, with_moments=with_moments
            )
            total += sums[0]
            target_logit += sums[1]
            if moments is not None:
                moments = moments.plus(sums[2], sums[3], panel.matrix.shape[1])
        return self._as_statistics(hidden, columns, target_logit, reference, total, moments)

    def _tilted(self, hidden: Tensor, columns: Tensor, tilt: Tilt) -> tuple[list[Panel], RowStatistics, Tilt]:
        panels, reference = self._panels(hidden)
        statistics = self._swept(panels, reference, hidden, columns, store=False, with_moments=True)
        statistics = statistics.merged(self.head.shard)
        tilt = tilt.measured(statistics)
        against, affine = _finite(statistics.reference), tilt.affine(statistics)
        for panel in panels:
            self._row_exponentials_(panel.matrix, panel.columns, columns, against, store=True, affine=affine)
        return panels, statistics, tilt

    def _row_exponentials_(
        self,
        products: Tensor,
        part: slice,
        columns: Tensor,
        reference: Tensor,
        *,
        store: bool,
        with_moments: bool = False,
        affine: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        return self.sweeps().row_exponentials_(
            products,
            self._bias(part),
            softcap=self.head.softcap,
            scale=1.0 / self.head.temperature,
            reference=reference,
            columns=columns - part.start,
            store=store,
            with_moments=with_moments,
            affine=affine,
        )

    def _as_statistics(
        self,
        hidden: Tensor,
        columns: Tensor,
        target_logit: Tensor,
        reference: Tensor,
        total: Tensor,
        moments: Moments | None,
    ) -> RowStatistics:
        target_logit = self._target_logit(hidden, columns, target_logit)
        return RowStatistics(target_logit, reference, total, scale=1.0 / self.head.temperature, moments=moments)

    def _target_logit(self, hidden: Tensor, columns: Tensor, found: Tensor) -> Tensor:
        """(R,) over all shards. found: (R,) from the products, which are too coarse where they are rounded."""
        head, is_here = self.head, self.head.holds(columns)
        if product_dtype(hidden.dtype, hidden.device) != found.dtype:
            column = columns.clamp(0, head.vocabulary - 1)
            product = hidden.to(found.dtype).mul_(head.weight[column]).sum(dim=1)
            found = self._capped(product if head.bias is None else product + head.bias[column])
        target_logit = torch.where(is_here, found, head.absent_logit)
        return target_logit if head.shard is None else head.shard.target_logit(target_logit, is_here)

    def _capped(self, values: Tensor) -> Tensor:
        """Logits of products that have their bias."""
        softcap = self.head.softcap
        return values if softcap is None else (values / softcap).tanh() * softcap

    def _bias(self, part: slice) -> Tensor | None:
        return None if self.head.bias is None else self.head.bias[part]

    def _column_ranges(self, row_count: int, panel_bytes: int) -> list[slice]:
        """One range beyond the CPU, where launches cost more than memory's way back."""
        on_cpu = self.head.weight.device.type == "cpu"
        entry_bytes = self._entry_bytes(self.head)
        return column_ranges(self.head.vocabulary, row_count, entry_bytes, panel_bytes if on_cpu else 2**62)

    @staticmethod
    def _entry_bytes(head: Head) -> int:
        return product_dtype(head.weight.dtype, head.weight.device).itemsize


def column_ranges(vocabulary: int, row_count: int, entry_bytes: int, panel_bytes: int) -> list[slice]:
    """Cut the columns into even ranges, as many as give each panel at least this memory; at least one.

    >>> column_ranges(10, row_count=2, entry_bytes=4, panel_bytes=24)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    least = max(1, -(-panel_bytes // max(1, row_count * entry_bytes)))
    count = max(1, vocabulary // least)
    edges = [vocabulary * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _finite(reference: Tensor) -> Tensor:
    """Replace a reference of -inf: a row of nothing but -inf has exponentials of 0 against any number."""
    return reference.masked_fill(reference == -torch.inf, 0.0)
