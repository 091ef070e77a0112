"""Reads records from CSV: the first line names the columns, and every value is a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from fastflow.counted import counted
from fastflow.data.text_file import read_text
from fastflow.errors import FastflowError


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row with its file and line. Raises FastflowError for one that does not fit the first line."""
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    names: list[str] = []
    while True:
        place = f"{path}:{lines.line_num + 1}"
        try:
            row = next(lines, None)
        except csv.Error as error:
            raise FastflowError(f"{place}: not valid CSV ({error}); repair the line, or write JSONL") from error
        if row is None:
            return
        if not row:  # an empty line
            continue
        if not names:
            names = row
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise FastflowError(f"{place}: more than one column {twice[0]!r}; rename or remove one")
            continue
        if len(row) != len(names):
            found, named = counted(len(row), "value"), counted(len(names), "column")
            raise FastflowError(
                f"{place}: {found}, but the first line names {named}; put values with a comma into double quotes"
            )
        yield place, dict(zip(names, row, strict=True))
