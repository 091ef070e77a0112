"""The vocabulary as tiles and strips."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from fastflow_kernels.hopper import tiles
from fastflow_kernels.hopper.tiles import STRIP, parts_of, tile_count


def test_examples_in_docstrings():
    result = doctest.testmod(tiles)
    assert result.attempted and not result.failed


@given(vocabulary=st.integers(1, 2000).map(lambda number: 128 * number), tile=st.sampled_from([64, 128, 192, 256]))
def test_parts_cover_the_vocabulary_in_whole_tiles(vocabulary, tile):
    parts = parts_of(vocabulary, tile)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == vocabulary
    assert all((part.stop - part.start) % part.width == 0 == part.width % STRIP for part in parts)
    numbers = [number for part in parts for number in range(part.tiles.start, part.tiles.stop)]
    assert numbers == list(range(tile_count(vocabulary, tile)))
    assert all(part.start // tile == part.tile for part in parts)
