"""Defects that the checks must see: a line of a kernel, what stands there instead, and the case that finds it.

Most pass the tests of tests/kernels: memory behind a tensor is usually somebody's, and 2^31 elements are more than a
test allocates. A kernel that is rewritten takes its defects along: planting one whose line is gone is an error.
"""

from typing import NamedTuple


class Defect(NamedTuple):
    """`instead` replaces `line`, a part of one, wherever fastflow_kernels/triton/`file` has it."""

    file: str
    line: str
    instead: str
    case: str  # of cases.py

    def __str__(self) -> str:
        return f"{self.file}: {self.instead}"


DEFECTS = (
    # int32 where only int64 reaches
    Defect(
        "project.py",
        "left_rows = tl.where(rows < row_count, rows, 0).to(tl.int64)",
        "left_rows = tl.where(rows < row_count, rows, 0)",
        "huge project",
    ),
    Defect(
        "project.py",
        "right_rows = tl.where(columns < vocabulary, columns, 0).to(tl.int64)",
        "right_rows = tl.where(columns < vocabulary, columns, 0)",
        "huge project",
    ),
    Defect(
        "project.py",
        "tl.store(tile_total + vocabulary_tile.to(tl.int64) * row_count + rows",
        "tl.store(tile_total + vocabulary_tile * row_count + rows",
        "huge project",
    ),
    Defect(
        "project.py",
        "rows.to(tl.int64)[:, None] * exponentials_stride",
        "rows[:, None] * exponentials_stride",
        "huge project",
    ),
    Defect(
        "rebase.py",
        "first_tile = tl.program_id(1).to(tl.int64) * BLOCK_TILES",
        "first_tile = tl.program_id(1) * BLOCK_TILES",
        "huge rebase",
    ),
    Defect(
        "rebase.py",
        "rows.to(tl.int64)[:, None] * exponentials_stride",
        "rows[:, None] * exponentials_stride",
        "huge rebase",
    ),
    Defect(
        "combine.py",
        "places = tiles.to(tl.int64)[:, None] * total_stride",
        "places = tiles[:, None] * total_stride",
        "huge combine",
    ),
    Defect("row.py", "row = tl.program_id(0).to(tl.int64)", "row = tl.program_id(0)", "huge row"),
    Defect("target_logit.py", "row = tl.program_id(0).to(tl.int64)", "row = tl.program_id(0)", "huge target_logit"),
    Defect("finish.py", "rows.to(tl.int64) * direction_stride", "rows * direction_stride", "huge finish"),
    Defect("excess.py", "rows.to(tl.int64)[:, None] * hidden_stride", "rows[:, None] * hidden_stride", "huge excess"),
    Defect(
        "excess.py", "columns.to(tl.int64)[None, :] * weight_stride", "columns[None, :] * weight_stride", "huge excess"
    ),
    # bounds of rows and columns that are left out, or are those of something else
    Defect(
        "project.py", "tl.where(rows < row_count, rows, 0)", "tl.where(rows < row_count, rows, rows)", "fused float32"
    ),
    Defect(
        "project.py",
        "tl.where(columns < vocabulary, columns, 0)",
        "tl.where(columns < vocabulary, columns, columns)",
        "fused float32",
    ),
    Defect("project.py", "bias + columns, mask=columns < vocabulary, other=0.0", "bias + columns", "fused float32"),
    Defect(
        "project.py",
        "is_entry = is_row[:, None] & (columns[None, :] < vocabulary)",
        "is_entry = is_row[:, None] & (columns[None, :] < exponentials_stride)",
        "fused float32",
    ),
    Defect(
        "project.py",
        "* row_count + rows, tl.sum(values, 1), mask=is_row)",
        "* row_count + rows, tl.sum(values, 1))",
        "fused float32",
    ),
    Defect(
        "project.py",
        "inside = positions < WIDTH - step * BLOCK_WIDTH",
        "inside = positions < BLOCK_WIDTH",
        "fused float32",
    ),
    Defect(
        "rebase.py",
        "is_column = (within < TILE) & (columns < vocabulary)",
        "is_column = (within < TILE) & (columns < exponentials_stride)",
        "rebase ragged",
    ),
    Defect("excess.py", "mask=is_row[:, None] & inside[None, :]", "mask=inside[None, :]", "fused excess"),
    Defect("excess.py", "bias + columns, mask=is_column, other=0.0", "bias + columns", "fused excess"),
    Defect(
        "combine.py", "tl.store(total + rows, running, mask=is_row)", "tl.store(total + rows, running)", "fused float32"
    ),
    Defect(
        "row.py",
        "tl.store(pointers, values.to(exponentials.dtype.element_ty), mask=inside)",
        "tl.store(pointers, values.to(exponentials.dtype.element_ty))",
        "rows float32",
    ),
    Defect("row.py", "column = tl.where(is_here, target, 0)", "column = target + 1", "rows float32"),
    Defect("target_logit.py", "inside = positions < width", "inside = positions < BLOCK_WIDTH", "fused float32"),
    Defect(
        "sequence.py",
        "tl.store(row_factor + rows, factor * coefficient, mask=rows < end)",
        "tl.store(row_factor + rows, factor * coefficient)",
        "fused float32",
    ),
    Defect(
        "sequence.py",
        "last = tl.load(cu_seqlens + sequence + 1)",
        "last = tl.load(cu_seqlens + sequence + 2)",
        "fused float32",
    ),
    Defect(
        "finish.py",
        "(-1.0 / (total * temperature)).to(tl.float32), mask=is_row)",
        "(-1.0 / (total * temperature)).to(tl.float32))",
        "fused float32",
    ),
    Defect(
        "upstream.py",
        "tl.store(out + entries, values.to(out.dtype.element_ty), mask=entries < size)",
        "tl.store(out + entries, values.to(out.dtype.element_ty))",
        "upstream ragged",
    ),
    # what switched-off lanes hold
    Defect(
        "sequence.py",
        "tl.load(row_factor + rows, mask=rows < end, other=0.0)",
        "tl.load(row_factor + rows, mask=rows < end)",
        "fused float32",
    ),
    Defect(
        "project.py",
        "counts = (within < vocabulary - first_column) & (within != place[:, None])",
        "counts = within != place[:, None]",
        "fused float32",
    ),
    Defect("combine.py", "tl.where(out_of_range, 0.0, parts)", "parts", "fused excess"),
    # tiles that two programs take, or none
    Defect("project.py", "rows = min(row_tiles - first_row, GROUP)", "rows = GROUP", "fused float32"),
    Defect(
        "project.py",
        "tl.program_id(0), row_tiles * vocabulary_tiles, PROGRAMS",
        "tl.program_id(0) // 2, row_tiles * vocabulary_tiles, PROGRAMS",
        "fused float32",
    ),
)
