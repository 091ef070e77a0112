"""The pass over a block of logits in plain PyTorch: any device, any type."""

import torch
from torch import Tensor

from fastflow_kernels.matmul import accumulator_dtype, project
from fastflow_kernels.projector import Exponentials, Projector
from fastflow_kernels.row_statistics import RowStatistics


class TorchProjector(Projector):
    """Logits from torch's product, then maximum, exponentials and sum, each one sweep in place."""

    def _statistics(self, hidden: Tensor, columns: Tensor) -> RowStatistics:
        return self._exponentials(hidden, columns, with_slope=False).statistics

    def _exponentials(self, hidden: Tensor, columns: Tensor, with_slope: bool = True) -> Exponentials:
        logits, slope = self._logits(hidden, with_slope)
        reference = logits.amax(dim=1, keepdim=True)
        target_logit = self._take_targets_(logits, columns)
        exponentials = logits.sub_(reference).exp_()
        statistics = RowStatistics(target_logit, reference.squeeze(1), exponentials.sum(dim=1))
        if slope is not None:
            exponentials.mul_(slope)
        return Exponentials(exponentials, reference.t(), statistics)

    def _logits(self, hidden: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        """Logits (R, V), and where there is a soft-cap its slope, a second block."""
        head = self.head
        out = self._block(hidden.shape[0], accumulator_dtype(head.weight.dtype))
        if head.softcap is None:
            return project(hidden, head.weight, head.bias, out=out, scale=1.0 / head.temperature), None
        fraction = project(hidden, head.weight, head.bias, out=out).div_(head.softcap).tanh_()
        slope = fraction.square().neg_().add_(1.0) if with_slope else None
        return fraction.mul_(head.softcap / head.temperature), slope

    def _take_targets_(self, logits: Tensor, columns: Tensor) -> Tensor:
        """The targets' logits (R,), over all shards; -inf takes their place, whose exponential is 0."""
        head, column = self.head, columns.unsqueeze(1)
        if head.shard is None:
            target_logit = logits.gather(1, column).squeeze(1)
            logits.scatter_(1, column, -torch.inf)
            return target_logit
        is_here, column = head.holds(column), column.clamp(0, head.vocabulary - 1)
        found = logits.gather(1, column)
        logits.scatter_(1, column, found.masked_fill(is_here, -torch.inf))
        return head.shard.sum_(found.masked_fill(~is_here, 0.0).squeeze(1))
