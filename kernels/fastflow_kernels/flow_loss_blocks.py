"""Goes over the blocks of `flow_loss`, free of autograd; flow_loss.py explains the algorithm."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow_kernels.blocks import SequenceBlock, told
from fastflow_kernels.head import Head
from fastflow_kernels.head_gradient import HeadGradient, spend_directions
from fastflow_kernels.implementation import Choice
from fastflow_kernels.matmul import accumulator_dtype
from fastflow_kernels.projector import Projector
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.sequence_terms import SequenceInputs, SequenceTerms, settle_sequences_
from fastflow_kernels.shard import SumsUnderWay


class FlowLossGradients(NamedTuple):
    """d loss / d input for an upstream gradient of one; None where not needed. In accumulator type, the head's as
    head_gradient.py finishes it."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    log_z: Tensor | None


class NeededGradients(NamedTuple):
    """Which inputs need a gradient; work is done for those only."""

    hidden: bool
    weight: bool
    bias: bool
    log_z: bool

    @property
    def head(self) -> bool:
        return self.weight or self.bias


class FlowLossOverBlocks:
    """One call: blocks go through in order, and leave log-probs, statistics, sequence terms and gradients."""

    def __init__(
        self,
        hidden: Tensor,  # (N, D), in the type of the head
        targets: Tensor,  # (N,) int64
        offsets: Tensor,  # (S+1,) int64, on the device
        head: Head,
        weight: Tensor,  # the head's parameters, padding included
        bias: Tensor | None,
        sequences: SequenceInputs,
        choice: Choice,
        need: NeededGradients,
        with_statistics: bool = False,
        weight_sum: Tensor | None = None,  # of the weight's shape, in the type of sums: what its gradient is added to
    ):
        self.hidden, self.targets, self.offsets = hidden, targets, offsets
        self.head, self.sequences, self.need = head, sequences, need
        self.weight_sum = weight_sum
        summed = weight if weight_sum is None else weight_sum
        self.parameters = summed if need.weight else None, bias if need.bias else None
        self.projector_class: type[Projector] = choice.projector()
        self.settle_sequences_ = settle_sequences_
        if choice.uses_triton:
            from fastflow_kernels.triton import sequence

            self.settle_sequences_ = sequence.settle_sequences_

        self.dtype = accumulator_dtype(hidden.dtype)
        self.token_logprob = hidden.new_empty(hidden.shape[0], dtype=self.dtype)
        self.token_statistics = TokenStatistics.empty(hidden.shape[0], hidden, self.dtype) if with_statistics else None
        self.terms = SequenceTerms.zeros(like=sequences.log_z)
        self.d_hidden = torch.empty_like(hidden, dtype=self.dtype) if need.hidden else None
        self.d_hidden_sums = SumsUnderWay(head.shard)

    def default_block_rows(self, boundaries: list[int], block_bytes: int | None) -> int:
        """boundaries: cu_seqlens as a host list."""
        return self.projector_class.default_rows(
            self.head,
            row_count=boundaries[-1],
            with_gradient=self.need.hidden or self.need.head,
            weight=self.parameters[0],
            longest=max((stop - start for start, stop in itertools.pairwise(boundaries)), default=0),
            block_bytes=block_bytes,
        )

    def run(self, blocks: list[SequenceBlock]) -> FlowLossGradients:
        """Fill token_logprob and terms; `blocks` cover the rows in order, and the sequences."""
        projector = self.projector_class(self.head, most_rows=max((block.row_count for block in blocks), default=0))
        d_head = HeadGradient(self.head, *self.parameters, block_count=len(blocks), weight_sum=self.weight_sum)
        long_d_head = None  # of the sequence that is longer than a block
        if any(block.is_part for block in blocks):
            long_d_head = HeadGradient(self.head, *self.parameters, block_count=len(blocks))
        long_row_start = 0
        for block in told(blocks):
            if block.opens:
                long_row_start = block.row_start
            if self.need.hidden or self.need.head:
                self._take_gradient(projector, block, long_d_head if block.is_part else d_head)
                if long_d_head is not None and block.is_part and block.closes:
                    self._scale_long_sequence(block, slice(long_row_start, block.row_stop), d_head, long_d_head)
            else:
                projector.logprobs(self.hidden[block.rows], self.targets[block.rows], *self._outputs(block.rows))
                self._settle(block, row_factor=torch.empty_like(self.token_logprob[block.rows]))
        del projector, long_d_head  # with their memory, before a sum is rounded into memory of its own
        self.d_hidden_sums.wait()
        return FlowLossGradients(self.d_hidden, *d_head.finish(), self.terms.d_log_z if self.need.log_z else None)

    def _take_gradient(self, projector: Projector, block: SequenceBlock, d_head: HeadGradient | None) -> None:
        """d_head: what the head's gradient is added to."""
        hidden = self.hidden[block.rows]
        direction = projector.directions(hidden, self.targets[block.rows], *self._outputs(block.rows))
        self._settle(block, direction.factor)
        spend_directions(
            direction.panels,
            direction.factor,
            hidden,
            self.head,
            self.d_hidden[block.rows] if self.d_hidden is not None else None,
            d_head if self.need.head else None,
            hidden_is_done=None if block.is_part else self.d_hidden_sums.start_,
        )

    def _outputs(self, rows: slice) -> tuple[Tensor, TokenStatistics | None]:
        """Where these rows' log-probs and statistics belong."""
        return self.token_logprob[rows], None if self.token_statistics is None else self.token_statistics.rows(rows)

    def _settle(self, block: SequenceBlock, row_factor: Tensor) -> None:
        token_logprob = self.token_logprob[block.rows]
        self.settle_sequences_(self.terms, self.sequences, self.offsets, block, token_logprob, row_factor)

    def _scale_long_sequence(
        self, last: SequenceBlock, rows: slice, d_head: HeadGradient, long_d_head: HeadGradient
    ) -> None:
        """Its parts went in with coefficient one; the last of them has made the coefficient known."""
        d_logprob = self.terms.d_logprob[last.sequences].to(self.dtype)
        if self.d_hidden is not None:
            self.d_hidden_sums.start_(self.d_hidden[rows].mul_(d_logprob))
        if self.need.head:
            d_head.take_scaled(long_d_head, d_logprob)
