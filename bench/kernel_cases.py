"""Every kernel of fastflow_kernels/triton in the variants that its launcher produces, as launches on meta tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench.shapes import Shape
from fastflow_kernels.blocks import SequenceBlock
from fastflow_kernels.head import Head
from fastflow_kernels.hopper.support import head_obstacle
from fastflow_kernels.hopper.tiles import TILE, tile_count
from fastflow_kernels.matmul import direction_dtype
from fastflow_kernels.row_statistics import RowStatistics
from fastflow_kernels.sequence_terms import RATIOS, SequenceInputs, SequenceTerms
from fastflow_kernels.tiles import CANDIDATES, Tile, TileKey, has_aligned_rows, table_tile
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

USUAL = Shape(4096, 1536, 151936)
ODD_WIDTH = Shape(4096, 1537, 151936)  # rows that are not aligned to 16 bytes: neither TMA nor cp.async
CHUNKED_WIDTH = Shape(4096, 1544, 151936)  # in bfloat16, rows of a multiple of 16 bytes but not of 16 entries
ODD_VOCABULARY = Shape(4096, 1536, 50257)  # exponentials in rows of 50264, a multiple of 16 bytes but not of 16 entries
SMALLEST = Shape(1, 1, 1)  # a size of 1 becomes a constant, which the compiler may reject where a variable would do
OTHER_WIDTHS = tuple(Shape(4096, width, 151936) for width in (2048, 3584, 4096))

EVERY_SETTING = tuple(product((False, True), repeat=3))  # stores, bias, soft-cap
ALL_OR_NONE = ((False, False, False), (True, True, True))
MOMENTS, TILT = "moments", "tilt"  # what a call for statistics, or for a gradient of them, asks for besides

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of the factors
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTC*MMA", 120: "HMMA"}  # instructions of products of two-byte types
ANY_TENSOR_CORES = "*MMA"
MOST_EPILOGUE = 1250  # of the projection on sm_90: 128 exponentials a thread, about nine instructions each
TMA_LOAD, TMA_STORE, ASYNCHRONOUS_COPY = "UTMALDG", "UTMASTG", "LDGSTS"


@dataclass(frozen=True)
class Case:
    """One launch, and which instructions its kernel must and must not have."""

    kernel: str
    variant: str
    launch: Callable[[], object]
    needs: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    most_epilogue: int | None = None  # instructions that may follow the last product


def cases(architecture: int, *, thorough: bool = False) -> Iterator[Case]:
    """All kernels for an architecture; `thorough` for every combination of shape, type and settings."""
    yield from _project_cases(architecture, thorough)
    yield from _row_cases(thorough)
    yield from _target_logit_cases(thorough)
    yield from _rebase_cases(architecture, thorough)
    yield from _combine_cases(architecture, thorough)
    yield from _finish_cases(thorough)
    yield from _upstream_cases()
    yield from _sequence_cases()


def candidates(architecture: int) -> Iterator[Case]:
    """The projection with each tile that a search would try."""
    for tile in CANDIDATES[architecture]:
        for stores, has_softcap in product((False, True), repeat=2):
            yield project_case(architecture, USUAL, torch.bfloat16, stores, False, has_softcap, tile)


def _project_cases(architecture: int, thorough: bool) -> Iterator[Case]:
    plan = [
        (USUAL, torch.bfloat16, EVERY_SETTING),
        (ODD_WIDTH, torch.bfloat16, ALL_OR_NONE),
        (CHUNKED_WIDTH, torch.bfloat16, ALL_OR_NONE),
        (ODD_VOCABULARY, torch.bfloat16, ALL_OR_NONE),
        (USUAL, torch.float16, ALL_OR_NONE),
        (USUAL, torch.float32, ALL_OR_NONE),
    ]
    if thorough:
        shapes = (USUAL, ODD_WIDTH, CHUNKED_WIDTH, ODD_VOCABULARY, SMALLEST, *OTHER_WIDTHS)
        plan = [(shape, dtype, EVERY_SETTING) for shape, dtype in product(shapes, DTYPES)]
    for shape, dtype, settings in plan:
        for setting in settings:
            yield project_case(architecture, shape, dtype, *setting)
            for further in _further(setting) if thorough or shape == USUAL else ():
                yield project_case(architecture, shape, dtype, *setting, further=further)
    for setting in ALL_OR_NONE:
        yield project_case(architecture, USUAL, torch.bfloat16, *setting, hidden_padding=1)


def _further(setting: tuple[bool, bool, bool]) -> tuple[str, ...]:
    """Only what is stored can be tilted."""
    return (MOMENTS, TILT) if setting[0] else (MOMENTS,)


def project_case(
    architecture: int,
    shape: Shape,
    dtype: torch.dtype,
    stores: bool,
    has_bias: bool,
    has_softcap: bool,
    tile: Tile | None = None,
    hidden_padding: int = 0,
    further: str | None = None,
) -> Case:
    """tile: None for that of the table. hidden_padding: entries behind each row of hidden states; one, and the rows are
    not aligned, whatever the weight's are. further: MOMENTS, TILT or None."""
    head = _head(shape, dtype, has_bias, has_softcap)
    hidden = _empty(shape.rows, shape.width + hidden_padding, dtype=dtype)[:, : shape.width]
    flags = {"has_moments": further == MOMENTS, "has_tilt": further == TILT}
    tile = tile or table_tile(TileKey(architecture, stores, has_bias, has_softcap, **flags), hidden, head.weight)
    targets = _empty(shape.rows, dtype=torch.int64)
    exponentials = _block(shape, direction_dtype(dtype)) if stores else None
    is_aligned = has_aligned_rows(hidden) and has_aligned_rows(head.weight)
    needs = [] if dtype == torch.float32 else [TENSOR_CORES[architecture]]
    launch = partial(project, with_moments=further == MOMENTS)
    if further == TILT:
        launch = partial(project_tilted, affine=(_empty(shape.rows), _empty(shape.rows)))
    if is_aligned:
        needs += [TMA_LOAD, TMA_STORE][: 1 + stores] if tile.tma else [ASYNCHRONOUS_COPY]
    is_plain = is_aligned and not (has_bias or has_softcap or further)
    words = _words(shape, dtype, stores, has_bias, has_softcap, further)
    return Case(
        "project",
        f"{_tile_words(tile)}, {words}{' loose hidden' * hidden_padding}",
        partial(launch, hidden, head, targets, _empty(shape.rows), tile, exponentials),
        needs=tuple(needs),
        forbids=(ANY_TENSOR_CORES,) if dtype == torch.float32 else (),  # they would round float32 factors
        most_epilogue=MOST_EPILOGUE if (architecture, dtype) == (90, torch.bfloat16) and is_plain else None,
    )


def _row_cases(thorough: bool) -> Iterator[Case]:
    """For factors of each type: bfloat16 logits come with the targets' apart, and none of float32 do."""
    for shape in (USUAL, ODD_VOCABULARY, SMALLEST) if thorough else (USUAL,):
        wide, narrow = _block(shape, torch.float32), _block(shape, torch.bfloat16)
        targets = _empty(shape.rows, dtype=torch.int64)
        for stores, has_bias, has_softcap in EVERY_SETTING if thorough else ALL_OR_NONE:
            head = _head(shape, torch.float32, has_bias, has_softcap)
            for dtype, logits, matrix, target_logit in (
                (torch.float32, wide, wide, None),
                (torch.float16, wide, narrow, None),
                (torch.bfloat16, narrow, narrow, _empty(shape.rows)),
            ):
                if not stores and dtype == torch.float16:
                    continue  # as float32
                words = partial(_words, shape, dtype, stores, has_bias, has_softcap)
                launch = partial(row_pass, logits, head, targets, matrix if stores else None, target_logit)
                yield Case("row", words(), launch)
                yield Case("row", words(MOMENTS), partial(launch, with_moments=True))
                if stores:
                    rows = _empty(shape.rows)
                    yield Case("row_tilt", words(), partial(tilt_rows, logits, head, rows, (rows, rows), matrix))


def _target_logit_cases(thorough: bool) -> Iterator[Case]:
    for shape in (USUAL, ODD_WIDTH, SMALLEST) if thorough else (USUAL,):
        for dtype, (_, has_bias, has_softcap) in product(DTYPES, ALL_OR_NONE):
            head, hidden = _head(shape, dtype, has_bias, has_softcap), _empty(shape.rows, shape.width, dtype=dtype)
            words = _words(shape, dtype, False, has_bias, has_softcap)
            launch = partial(target_logits, hidden, head, _empty(shape.rows, dtype=torch.int64))
            yield Case("target_logit", words, launch)
            if dtype == torch.bfloat16 and head_obstacle(head) is None:
                part_columns = _empty(2, shape.rows, dtype=torch.int32)
                launch = partial(launch, part_columns=part_columns, part_width=shape.vocabulary - 64)
                yield Case("target_logit", f"{words}, columns of two parts", launch)


def _rebase_cases(architecture: int, thorough: bool) -> Iterator[Case]:
    """With each width of tiles that the projection may have left."""
    for shape in (USUAL, ODD_VOCABULARY, SMALLEST) if thorough else (USUAL,):
        for dtype, (_, has_bias, has_softcap) in product((torch.bfloat16, torch.float32), ALL_OR_NONE):
            for tiles, given in _totals(architecture, shape, dtype, has_bias, has_softcap):
                words = f"{_words(shape, dtype, False, has_bias, has_softcap)}, {tiles}"
                totals, *others = given
                rows = _empty(shape.rows)
                statistics = RowStatistics(rows, rows, rows, scale=0.69)
                launch = partial(
                    rebase_and_finish_, _block(shape, dtype), totals, statistics, *others, logprob=rows, factor=rows
                )
                yield Case("rebase", words, launch)


def _combine_cases(architecture: int, thorough: bool) -> Iterator[Case]:
    for shape in (USUAL, ODD_VOCABULARY, SMALLEST) if thorough else (USUAL,):
        for dtype, (_, has_bias, has_softcap) in product((torch.bfloat16, torch.float32), ALL_OR_NONE):
            for tiles, given in _totals(architecture, shape, dtype, has_bias, has_softcap):
                words = f"{_words(shape, dtype, False, has_bias, has_softcap)}, {tiles}"
                totals, *others = given
                yield Case("combine", words, partial(combine, totals, _empty(shape.rows), *others))
                if totals.target_product is None:
                    moments = totals._replace(weighted=totals.total, logit_sum=totals.total)
                    launch = partial(combine, moments, _empty(shape.rows), *others)
                    yield Case("combine", f"{words}, moments", launch)


def _totals(
    architecture: int, shape: Shape, dtype: torch.dtype, has_bias: bool, has_softcap: bool
) -> Iterator[tuple[str, tuple]]:
    """Each width of tiles, in words, with the totals of such, and the rows, head and targets that they are of."""
    head, rows = _head(shape, dtype, has_bias, has_softcap), _empty(shape.rows, shape.width, dtype=dtype)
    targets = _empty(shape.rows, dtype=torch.int64)
    keys = (TileKey(architecture, stores, has_bias, has_softcap) for stores in (False, True))
    for width in sorted({table_tile(key, rows, head.weight).vocabulary for key in keys}):
        totals = Totals(_empty(-(-shape.vocabulary // width), shape.rows), width)
        yield f"tiles of {width}", (totals, rows, head, targets)
    if (architecture, dtype) == (90, torch.bfloat16) and head_obstacle(head) is None:
        totals = Totals(_empty(shape.rows, tile_count(shape.vocabulary)).t(), TILE, _empty(shape.rows))
        yield f"hopper's tiles of {TILE}", (totals, rows, head, targets)


def _finish_cases(thorough: bool) -> Iterator[Case]:
    """For the three kinds of direction, and for log-probs alone."""
    for shape in (USUAL, SMALLEST) if thorough else (USUAL,):
        rows, columns = _empty(shape.rows), _empty(shape.rows, dtype=torch.int64)
        statistics = RowStatistics(rows, rows, rows, scale=0.69)
        for dtype, has_softcap in product((torch.bfloat16, torch.float32), (False, True)):
            head, matrix = _head(shape, dtype, False, has_softcap), _block(shape, dtype)
            launch = partial(finish, statistics, head, columns, rows, rows, matrix)
            yield Case("finish", _words(shape, dtype, True, False, has_softcap), launch)
        alone = partial(finish, statistics, head, columns, rows, None, None)
        yield Case("finish", _words(shape, torch.float32), alone)


def _upstream_cases() -> Iterator[Case]:
    upstream = _empty()
    for given, taken in ((torch.bfloat16,) * 2, (torch.float32,) * 2, (torch.float32, torch.bfloat16)):
        gradient = _empty(4096, 1536, dtype=given)
        out = gradient if given == taken else _empty(4096, 1536, dtype=taken)
        words = f"{given} to {taken}".replace("torch.", "")
        yield Case("upstream", words, partial(take_upstream, gradient, upstream, out))


def _sequence_cases() -> Iterator[Case]:
    """Whole sequences, and the first and last part of a long one."""
    count, rows = 8, 4096
    offsets = _empty(count + 1, dtype=torch.int64)
    per_sequence = [_empty(count, dtype=torch.float64) for _ in range(4)]
    terms = SequenceTerms.zeros(per_sequence[0])
    blocks = {
        "whole sequences": SequenceBlock(0, rows, 0, count),
        "first part": SequenceBlock(0, rows, 0, 1, closes=False),
        "last part": SequenceBlock(rows, 2 * rows, 0, 1, opens=False),
    }
    for ratio, (name, block) in product(RATIOS, blocks.items()):
        inputs = SequenceInputs(*per_sequence, clip_low=0.2, clip_high=0.28, ratio=ratio, normaliser=64.0)
        launch = partial(settle_sequences_, terms, inputs, offsets, block, _empty(rows), _empty(rows))
        yield Case("sequence", f"{name}, ratio {ratio}", launch)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _block(shape: Shape, dtype: torch.dtype) -> Tensor:
    """(N, V) as a projector allocates it, with rows at multiples of 16 bytes."""
    return _empty(shape.rows, -(-shape.vocabulary // 8) * 8, dtype=dtype)[:, : shape.vocabulary]


def _head(shape: Shape, dtype: torch.dtype, has_bias: bool, has_softcap: bool) -> Head:
    weight = _empty(shape.vocabulary, shape.width, dtype=dtype)
    return Head(weight, _empty(shape.vocabulary) if has_bias else None, softcap=30.0 if has_softcap else None)


def _tile_words(tile: Tile) -> str:
    words = f"{tile.rows}x{tile.vocabulary}x{tile.width} {tile.warps} warps {tile.stages} stages"
    flags = {"TMA": tile.tma, f"group {tile.group}": tile.group != Tile.group}
    return " ".join([words, *(name for name, is_set in flags.items() if is_set)])


def _words(
    shape: Shape, dtype: torch.dtype, stores=False, has_bias=False, has_softcap=False, further: str | None = None
) -> str:
    sizes = {
        f"D {shape.width}": shape.width != USUAL.width,
        f"V {shape.vocabulary}": shape.vocabulary != USUAL.vocabulary,
    }
    flags = sizes | {"bias": has_bias, "softcap": has_softcap, "stores": stores}
    found = [name for name, is_set in flags.items() if is_set] + ([further] if further else [])
    return " ".join([str(dtype).removeprefix("torch."), *found])
