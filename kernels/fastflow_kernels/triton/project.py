"""The projection to logits, whose epilogue keeps one number per row and tile, and at most the exponentials.

A persistent matrix product over tiles of (rows, vocabulary), float32 accumulators. The logits never leave the
registers. They are measured in bits, z = logit * scale with scale = log2(e) / temperature, and against the logit z_t of
their row's target, so that an exponential is one multiply-add and one instruction of the special-function unit. Each
tile reduces its row to

    total = sum over the tile's columns, the target's left out, of 2^(z - z_t)

and, where the gradient will need them, stores 2^(z - z_t) in the type of the products. In bfloat16 that is a relative
error of 2^-9 on a probability, where a stored logit would have an absolute one, and it is half the bytes of a float32
logit. The target's own logit is a natural reference: it was sampled, so nearly always no other logit stands far above
it. A tile in which one does leaves a total above LIMIT (excess.py), and that tile is taken again.

Where statistics are asked for, two more sums per row and tile are compiled in (moments.py). For their gradients all
tiles measure against a reference that no logit exceeds, sum nothing, and store a tilted direction (tilt.py).

Tiles run down the rows first, a group of rows at a time: the rows' hidden states stay in the L2 cache while the
head's weight streams by once a group. Operands come through tensor descriptors (TMA) where the device has them
and the rows are aligned to 16 bytes, else through pointers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastflow_kernels.head import Head
from fastflow_kernels.tiles import Tile, has_aligned_rows, has_whole_chunks, multiprocessors
from fastflow_kernels.triton.excess import Totals
from fastflow_kernels.triton.logit import LEAST_EXPONENT, bits_per_logit, soft_cap_slope, soft_capped


@triton.jit
def _place_of(tile, row_tiles, vocabulary_tiles, GROUP: tl.constexpr):
    """(row tile, vocabulary tile) of a tile number: down the rows of a group, then on to the next columns."""
    group_size = GROUP * vocabulary_tiles
    first_row = (tile // group_size) * GROUP
    rows = min(row_tiles - first_row, GROUP)
    within = tile % group_size
    return first_row + within % rows, within // rows


# A block may start at an odd row: its targets must not compile the kernel once more.
@triton.jit(do_not_specialize=["row_count"], do_not_specialize_on_alignment=["targets"])
def project_kernel(
    hidden,  # (R, D), pointer or descriptor
    weight,  # (V, D), pointer or descriptor
    bias,  # (V,) float32, or unused
    targets,  # (R,) int64, columns of this head; outside of it where another shard has them
    target_logit,  # (R,) float32, bits; with a tilt, its reference
    tile_total,  # (vocabulary tiles, R) float32
    exponentials,  # (R, V), pointer or descriptor, or unused
    tile_weighted,  # (vocabulary tiles, R) float32, bits, or unused
    tile_logit_sum,  # (vocabulary tiles, R) float32, or unused
    tilt_constant,  # (R,) float32, or unused
    tilt_slope,  # (R,) float32, per bit, or unused
    row_count,
    vocabulary,
    hidden_stride,
    weight_stride,
    exponentials_stride,
    scale,
    softcap,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
    MOMENTS: tl.constexpr,
    TILT: tl.constexpr,
    TMA: tl.constexpr,
    STRIDE_MULTIPLE: tl.constexpr,  # entries; Triton itself sees multiples of 16 only, and no cp.async below that
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VOCABULARY: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    row_tiles = tl.cdiv(row_count, BLOCK_ROWS)
    vocabulary_tiles = tl.cdiv(vocabulary, BLOCK_VOCABULARY)
    for tile in tl.range(tl.program_id(0), row_tiles * vocabulary_tiles, PROGRAMS):
        row_tile, vocabulary_tile = _place_of(tile, row_tiles, vocabulary_tiles, GROUP)
        first_row = row_tile * BLOCK_ROWS
        first_column = vocabulary_tile * BLOCK_VOCABULARY
        rows = first_row + tl.arange(0, BLOCK_ROWS)
        columns = first_column + tl.arange(0, BLOCK_VOCABULARY)
        logits = tl.zeros((BLOCK_ROWS, BLOCK_VOCABULARY), tl.float32)
        if TMA:
            for step in range(tl.cdiv(WIDTH, BLOCK_WIDTH)):
                left = hidden.load([first_row, step * BLOCK_WIDTH])
                right = weight.load([first_column, step * BLOCK_WIDTH])
                logits = tl.dot(left, right.T, logits, input_precision="ieee")
        else:
            positions = tl.arange(0, BLOCK_WIDTH)
            left_rows = tl.where(rows < row_count, rows, 0).to(tl.int64)
            right_rows = tl.where(columns < vocabulary, columns, 0).to(tl.int64)
            left_starts, right_starts = left_rows * hidden_stride, right_rows * weight_stride
            left_starts = tl.multiple_of(left_starts, STRIDE_MULTIPLE)
            right_starts = tl.multiple_of(right_starts, STRIDE_MULTIPLE)
            left_pointers = hidden + left_starts[:, None] + positions[None, :]
            right_pointers = weight + right_starts[None, :] + positions[:, None]
            for step in range(tl.cdiv(WIDTH, BLOCK_WIDTH)):
                inside = positions < WIDTH - step * BLOCK_WIDTH
                left = tl.load(left_pointers, mask=inside[None, :], other=0.0)
                right = tl.load(right_pointers, mask=inside[:, None], other=0.0)
                logits = tl.dot(left, right, logits, input_precision="ieee")
                left_pointers += BLOCK_WIDTH
                right_pointers += BLOCK_WIDTH

        if HAS_BIAS:
            logits += tl.load(bias + columns, mask=columns < vocabulary, other=0.0)[None, :]
        if HAS_SOFTCAP:
            logits = soft_capped(logits, softcap)
        is_row = rows < row_count
        offset = tl.load(targets + rows, mask=is_row, other=-1) - first_column
        place = tl.where((offset >= 0) & (offset < BLOCK_VOCABULARY), offset, -1).to(tl.int32)
        within = tl.arange(0, BLOCK_VOCABULARY)[None, :]
        if MOMENTS:
            logit_sum = tl.sum(tl.where(within < vocabulary - first_column, logits, 0.0), 1)
        # few tiles have a target or end the vocabulary, and the others need no mask
        if (first_column + BLOCK_VOCABULARY > vocabulary) | (tl.max(place, 0) >= 0):
            counts = (within < vocabulary - first_column) & (within != place[:, None])
            logits = tl.where(counts, logits, float("-inf"))
        reference = tl.load(target_logit + rows, mask=is_row, other=0.0)
        values = tl.exp2(logits * scale - reference[:, None])
        if MOMENTS:
            places = vocabulary_tile.to(tl.int64) * row_count + rows
            weighted = values * tl.maximum(logits * scale - reference[:, None], LEAST_EXPONENT)
            tl.store(tile_weighted + places, tl.sum(weighted, 1), mask=is_row)
            tl.store(tile_logit_sum + places, logit_sum, mask=is_row)
        if TILT:
            constant = tl.load(tilt_constant + rows, mask=is_row, other=0.0)
            slope = tl.load(tilt_slope + rows, mask=is_row, other=0.0)
            exponents = tl.maximum(logits * scale - reference[:, None], LEAST_EXPONENT)
            values *= slope[:, None] * exponents + constant[:, None]
        else:
            tl.store(tile_total + vocabulary_tile.to(tl.int64) * row_count + rows, tl.sum(values, 1), mask=is_row)
        if STORE:
            if HAS_SOFTCAP:
                values = tl.where(values == 0.0, 0.0, values * soft_cap_slope(logits, softcap))
            if TMA:
                exponentials.store([first_row, first_column], values.to(exponentials.dtype))
            else:
                pointers = exponentials + rows.to(tl.int64)[:, None] * exponentials_stride + columns[None, :]
                is_entry = is_row[:, None] & (columns[None, :] < vocabulary)
                tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=is_entry)


def project(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    target_logit: Tensor,
    tile: Tile,
    exponentials: Tensor | None,
    *,
    with_moments: bool = False,
) -> Totals:
    """The sums of every vocabulary tile and row; fills `exponentials` (R, V) if given.

    hidden: (R, D), in the type of head.weight; targets: (R,); target_logit: (R,), bits.
    """
    shape = (triton.cdiv(head.vocabulary, tile.vocabulary), hidden.shape[0])
    total, *moments = (
        torch.empty(shape, dtype=torch.float32, device=hidden.device) for _ in range(3 if with_moments else 1)
    )
    totals = Totals(total, tile.vocabulary, None, *moments)
    _launch(hidden, head, targets, target_logit, tile, exponentials, totals, (None, None))
    return totals


def project_tilted(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    reference: Tensor,
    tile: Tile,
    direction: Tensor,
    *,
    affine: tuple[Tensor, Tensor],
) -> None:
    """Fill direction (R, V) with e (constant + slope u), e = 2^u, u = z - reference, 0 at the targets.

    hidden and targets as above; reference: (R,) in bits; affine: constant, and slope per bit, (R,) each.
    """
    _launch(hidden, head, targets, reference, tile, direction, None, affine)


def _launch(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    target_logit: Tensor,
    tile: Tile,
    exponentials: Tensor | None,
    totals: Totals | None,
    affine: tuple[Tensor | None, Tensor | None],
) -> None:
    row_count, width = hidden.shape
    if not row_count:
        return
    row_tiles, vocabulary_tiles = triton.cdiv(row_count, tile.rows), triton.cdiv(head.vocabulary, tile.vocabulary)
    programs = multiprocessors(hidden)  # a constant: else another kernel
    total, weighted, logit_sum = (None,) * 3 if totals is None else (totals.total, totals.weighted, totals.logit_sum)
    operands = hidden, head.weight, exponentials
    is_aligned = all(operand is None or has_aligned_rows(operand) for operand in operands)
    use_tma = tile.tma and is_aligned
    if use_tma:
        operands = _descriptors(hidden, head.weight, exponentials, tile)
    project_kernel[(min(programs, row_tiles * vocabulary_tiles),)](
        operands[0],
        operands[1],
        head.bias,
        targets,
        target_logit,
        total,
        operands[2],
        weighted,
        logit_sum,
        *affine,
        row_count,
        head.vocabulary,
        hidden.stride(0),
        head.weight.stride(0),
        0 if exponentials is None else exponentials.stride(0),
        bits_per_logit(head),
        head.softcap or 0.0,
        WIDTH=width,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=head.softcap is not None,
        STORE=exponentials is not None,
        MOMENTS=weighted is not None,
        TILT=affine[0] is not None,
        TMA=use_tma,
        STRIDE_MULTIPLE=16 // hidden.element_size() if is_aligned else 1,
        BLOCK_ROWS=tile.rows,
        BLOCK_VOCABULARY=tile.vocabulary,
        BLOCK_WIDTH=tile.width,
        GROUP=tile.group,
        PROGRAMS=programs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,  # an exponent is one instruction: not left to a default that differs among versions
    )


def _descriptors(hidden: Tensor, weight: Tensor, exponentials: Tensor | None, tile: Tile) -> tuple:
    from triton.tools.tensor_descriptor import TensorDescriptor

    assert exponentials is None or has_whole_chunks(exponentials), "exponentials need rows of whole 16-byte chunks"

    def describe(matrix: Tensor, block: list[int]) -> TensorDescriptor:
        return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block)

    return (
        describe(hidden, [tile.rows, tile.width]),
        describe(weight, [tile.vocabulary, tile.width]),
        None if exponentials is None else describe(exponentials, [tile.rows, tile.vocabulary]),
    )
