"""The vendor library's product, then the CUDA library's pass over its rows."""

from torch import Tensor

from fastflow_kernels.cuda import native as cuda_native
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.triton.projectors import RowsProjector


class CudaRowsProjector(RowsProjector):
    """Reads a row of logits once where the Triton kernel reads it twice; where the row fits on the chip."""

    def _row_pass(
        self,
        logits: Tensor,
        columns: Tensor,
        matrix: Tensor | None,
        target_logit: Tensor | None = None,
        *,
        with_moments: bool = False,
    ) -> RowStatistics:
        """Without moments: implementation.py refuses calls that need them."""
        found = cuda_native.row_pass()(logits, self.head, columns, matrix, target_logit)
        return self._over_shards(RowStatistics(*found), columns)
