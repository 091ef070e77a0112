"""The vocabulary as tiles."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from fastflow_kernels.hopper import tiles
from fastflow_kernels.hopper.tiles import TILE, parts_of, tile_count


def test_examples_in_docstrings():
    result = doctest.testmod(tiles)
    assert result.attempted and not result.failed


@given(vocabulary=st.integers(1, 2000).map(lambda number: 128 * number))
def test_parts_cover_the_vocabulary_in_whole_tiles(vocabulary):
    parts = parts_of(vocabulary)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == vocabulary
    assert all((part.stop - part.start) % part.width == 0 for part in parts)
    numbers = [number for part in parts for number in range(part.tiles.start, part.tiles.stop)]
    assert numbers == list(range(tile_count(vocabulary)))
    assert all(part.start // TILE == part.tile for part in parts)


@given(vocabulary=st.integers(1, 2000).map(lambda number: 128 * number))
def test_each_part_has_a_schedule(vocabulary):
    """The same table as project.py's, which only a machine with QuACK can import."""
    assert {part.width for part in parts_of(vocabulary)} <= {64, 128, 192}
