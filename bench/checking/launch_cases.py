"""Single launches as cases, most at sizes beyond 2^31 elements: meta tensors, programs sampled from the grid."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor

from bench.checking.findings import Findings
from bench.checking.interpreter import checked
from bench.checking.launch import Rules
from bench.checking.subjects import WHOLLY_WRITTEN, hopper_tile, hopper_tiles
from fastflow_kernels.blocks import SequenceBlock
from fastflow_kernels.head import Head
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.sequence_terms import SequenceInputs, SequenceTerms
from fastflow_kernels.tiles import FLOAT32_TILE, INTERPRETER_TILE, UNALIGNED_TILE, Tile
from fastflow_kernels.triton import project as project_module
from fastflow_kernels.triton import upstream as upstream_module
from fastflow_kernels.triton.combine import combine
from fastflow_kernels.triton.excess import Totals
from fastflow_kernels.triton.finish import finish
from fastflow_kernels.triton.project import project, project_tilted
from fastflow_kernels.triton.rebase import rebase_and_finish_
from fastflow_kernels.triton.row import row_pass
from fastflow_kernels.triton.row_tilt import tilt_rows
from fastflow_kernels.triton.sequence import settle_sequences_
from fastflow_kernels.triton.target_logit import target_logits
from fastflow_kernels.triton.upstream import take_upstream

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
ROWS, VOCABULARY, WIDTH = 600_001, 600_003, 3_592  # R V, R D and V D are above 2^31
TALL = 2**25 + 1, 18_000, 72  # the same but for V D; statistics, two numbers a row and tile, exceed 2^31, too
WIDE = 300, 2**25 + 1, 72  # V D and R V, where each program goes over two slices of D
ONE_PROGRAM_A_TILE = 2**30  # multiprocessors


@dataclass(frozen=True)
class LaunchCase:
    """What `launch` launches, checked; sample: programs that run of each grid, None for all."""

    name: str
    launch: Callable[[], object]
    sample: int | None
    launches: Counter[str] = field(default_factory=Counter, compare=False)  # of each kernel, in all runs

    def run(self) -> Findings:
        findings = Findings()
        rules = Rules(sample=self.sample, wholly_written=WHOLLY_WRITTEN, seed=1)
        with (
            mock.patch.object(project_module, "multiprocessors", lambda _: ONE_PROGRAM_A_TILE),
            mock.patch.object(upstream_module, "multiprocessors", lambda _: 8000),
            checked(rules, findings, self.launches),
        ):
            self.launch()
        return findings


def launch_cases() -> tuple[LaunchCase, ...]:
    return (
        LaunchCase("huge project TMA", lambda: _project_both(hopper_tile(), BFLOAT16), sample=1),
        LaunchCase("huge project", lambda: _project_both(FLOAT32_TILE, FLOAT32), sample=1),
        LaunchCase("huge target_logit", lambda: target_logits(_empty(ROWS, WIDTH), _head(WIDTH), _targets()), sample=2),
        LaunchCase("huge row", _row, sample=1),
        LaunchCase("huge row tilt", _row_tilt, sample=1),
        LaunchCase("huge rebase", _rebase, sample=1),
        LaunchCase("huge combine", _combine, sample=2),
        LaunchCase("huge excess", _excess, sample=1),
        LaunchCase("huge finish", lambda: _finish(ROWS, _block(BFLOAT16), _targets()), sample=9),
        LaunchCase("huge upstream", lambda: _upstream(_empty(2**31 + 9), BFLOAT16), sample=2),
        LaunchCase("rebase ragged", _rebase_ragged, sample=None),
        LaunchCase("moments ragged", _moments_ragged, sample=None),
        LaunchCase("upstream ragged", lambda: _upstream(torch.ones(20_011), BFLOAT16), sample=None),
        LaunchCase("upstream in place", lambda: _upstream(torch.ones(20_011), FLOAT32), sample=None),
    )


def thorough_launch_cases() -> Iterator[LaunchCase]:
    """More of the same: every tile of sm_90, a vocabulary of two million, sequences that begin behind 2^31 rows."""
    rows, vocabulary = 524_289, 2_097_157
    plan = [(tile, BFLOAT16, 4096) for tile in hopper_tiles()]
    for tile, dtype, width in [*plan, (UNALIGNED_TILE, BFLOAT16, 4097), (FLOAT32_TILE, FLOAT32, 4096)]:
        yield LaunchCase(
            f"huge project {tile}",
            lambda tile=tile, dtype=dtype, width=width: _project(tile, dtype, width, rows, vocabulary),
            sample=4,
        )
    for width in (64, 128, 256):
        yield LaunchCase(f"huge rebase {width}", lambda width=width: _rebase(rows, vocabulary, width), sample=20)
        yield LaunchCase(f"huge combine {width}", lambda width=width: _combine(rows, vocabulary, width), sample=2)
    late = 2**33
    for block in (
        SequenceBlock(late, late + 9000, 1, 5),
        SequenceBlock(late - 4000, late, 0, 1, opens=False),
        SequenceBlock(2**31 + 1, 2**31 + 2001, 0, 1, opens=False, closes=False),
    ):
        offsets = torch.tensor([0, late, late + 3000, late + 3000, late + 5000, late + 9000])
        yield LaunchCase(f"late {block}", lambda block=block, offsets=offsets: _sequence(block, offsets), sample=None)


def _project_both(tile: Tile, dtype: torch.dtype) -> None:
    for rows, vocabulary, width in (TALL, WIDE):
        _project(tile, dtype, width, rows, vocabulary)


def _project(tile: Tile, dtype: torch.dtype, width: int, rows: int, vocabulary: int) -> None:
    head, targets = _head(width, dtype, vocabulary), _empty(rows, dtype=torch.int64)
    block = _block(dtype, rows, vocabulary)
    project(_empty(rows, width, dtype=dtype), head, targets, _empty(rows), tile, block)


def _row() -> None:
    vocabulary = 5_003
    head, block = _head(8, vocabulary=vocabulary), _block(FLOAT32, vocabulary=vocabulary)
    row_pass(block, head, _targets(vocabulary=vocabulary), block)


def _row_tilt() -> None:
    vocabulary = 5_003
    block, rows = _block(FLOAT32, vocabulary=vocabulary), _empty(ROWS)
    tilt_rows(block, _head(8, vocabulary=vocabulary), rows, (rows, rows), block)


def _combine(rows: int = 2**25 + 1, vocabulary: int = 70 * 64, width: int = 64) -> None:
    total, (of_rows, head, targets) = _empty(-(-vocabulary // width), rows), _rows(rows, vocabulary)
    combine(Totals(total, width), _empty(rows), of_rows, head, targets)


def _rebase(rows: int = ROWS, vocabulary: int = 5_000_011, width: int = 64) -> None:
    total, (of_rows, head, targets) = _empty(-(-vocabulary // width), rows), _rows(rows, vocabulary)
    _rebase_rows(_block(BFLOAT16, rows, vocabulary), Totals(total, width), _statistics(rows), of_rows, head, targets)


def _excess(tile: int = 256) -> None:
    """Tiles that are taken once more: of many rows, then the last ones of many columns."""
    for rows, vocabulary, width in ((2**25 + 1, tile, 72), (17, VOCABULARY, WIDTH)):
        total = torch.zeros(-(-vocabulary // tile), rows)
        total[-1] = torch.inf
        of_rows, head, targets = _rows(rows, vocabulary, width)
        totals = Totals(total, tile)
        combine(totals, _empty(rows), of_rows, head, targets)
        block = _block(FLOAT32, rows, vocabulary)
        _rebase_rows(block, totals, _statistics(rows), of_rows, head, targets)


def _rebase_rows(block: Tensor, totals: Totals, statistics: RowStatistics, *of_rows) -> None:
    rebase_and_finish_(block, totals, statistics, *of_rows, *(torch.empty_like(statistics.reference) for _ in range(2)))


def _statistics(rows: int) -> RowStatistics:
    return RowStatistics(*(_empty(rows) for _ in range(3)), scale=0.69)


def _rows(rows: int, vocabulary: int, width: int = 8) -> tuple[Tensor, Head, Tensor]:
    """Hidden states, head and targets."""
    return _empty(rows, width), _head(width, vocabulary=vocabulary), _empty(rows, dtype=torch.int64)


def _rebase_ragged() -> None:
    """Rows and columns beside whole tiles; some tiles are taken once more."""
    random = torch.Generator().manual_seed(0)
    total = torch.randn(9, 37, generator=random).abs()
    total[::3, 5] = torch.inf
    statistics = RowStatistics(*torch.randn(2, 37, generator=random), torch.rand(37, generator=random), scale=0.69)
    hidden, weight = torch.randn(37, 8, generator=random), torch.randn(515, 8, generator=random)
    targets = torch.randint(515, (37,), generator=random)
    block = torch.ones(37, 520)[:, :515]
    _rebase_rows(block, Totals(total, 64), statistics, hidden, Head(weight, None), targets)


def _moments_ragged() -> None:
    """The further sums and the tilted direction, on rows and columns beside whole tiles."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(37, 8, generator=random), torch.randn(515, 8, generator=random)
    target_logit, constant, slope = torch.randn(3, 37, generator=random)
    head, targets = Head(weight, torch.randn(515, generator=random)), torch.randint(515, (37,), generator=random)
    direction, logits = (torch.empty(37, 520)[:, :515] for _ in range(2))
    totals = project(hidden, head, targets, target_logit, INTERPRETER_TILE, direction, with_moments=True)
    combine(totals, target_logit, hidden, head, targets)
    project_tilted(hidden, head, targets, target_logit, INTERPRETER_TILE, direction, affine=(constant, slope))
    torch.mm(hidden, weight.t(), out=logits)
    row_pass(logits, head, targets, direction, with_moments=True)
    tilt_rows(logits, head, target_logit, (constant, slope), logits)


def _finish(rows: int, direction: Tensor, targets: Tensor) -> None:
    finish(_statistics(rows), _head(8), targets, _empty(rows), _empty(rows), direction)


def _upstream(gradient: Tensor, dtype: torch.dtype) -> None:
    out = gradient if dtype == gradient.dtype else torch.empty_like(gradient, dtype=dtype)
    take_upstream(gradient, torch.tensor(2.0), out)


def _sequence(block: SequenceBlock, offsets: Tensor) -> None:
    per_sequence = [torch.rand(len(offsets) - 1, dtype=torch.float64) for _ in range(4)]
    inputs = SequenceInputs(*per_sequence, clip_low=0.2, clip_high=0.28, ratio="token_mean", normaliser=4.0)
    rows = torch.rand(2, block.row_count)
    settle_sequences_(SequenceTerms.zeros(per_sequence[0]), inputs, offsets, block, *rows)


def _empty(*shape: int, dtype: torch.dtype = FLOAT32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _block(dtype: torch.dtype, rows: int = ROWS, vocabulary: int = VOCABULARY) -> Tensor:
    """(R, V) with rows at multiples of 16 bytes, as a projector allocates it."""
    return _empty(rows, -(-vocabulary // 8) * 8, dtype=dtype)[:, :vocabulary]


def _head(width: int, dtype: torch.dtype = FLOAT32, vocabulary: int = VOCABULARY) -> Head:
    return Head(_empty(vocabulary, width, dtype=dtype), _empty(vocabulary), softcap=30.0)


def _targets(rows: int = ROWS, vocabulary: int = VOCABULARY) -> Tensor:
    """The last column; a column below and one above the head's for rows 1 and 2."""
    targets = torch.full((rows,), vocabulary - 1)
    targets[1:3] = torch.tensor([-5, vocabulary])
    return targets
