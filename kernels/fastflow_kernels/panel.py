"""A block's (R, V) matrix, kept as panels of neighbouring columns, so that each can go as soon as it is used up."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Panel(NamedTuple):
    """Columns [start, start + C) of a block."""

    start: int
    matrix: Tensor  # (R, C)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.start + self.matrix.shape[1])


def drained(panels: list[Panel]) -> Iterator[Panel]:
    """The panels in order; each leaves the list, and its memory is free once the caller lets go of it."""
    while panels:
        yield panels.pop(0)


def column_ranges(vocabulary: int, row_count: int, entry_bytes: int, panel_bytes: int) -> list[slice]:
    """As many ranges of columns of even width as give each panel at least this memory; one, if all of it is less.

    >>> column_ranges(10, row_count=2, entry_bytes=4, panel_bytes=24)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    least = max(1, -(-panel_bytes // max(1, row_count * entry_bytes)))
    count = max(1, vocabulary // least)
    edges = [vocabulary * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
