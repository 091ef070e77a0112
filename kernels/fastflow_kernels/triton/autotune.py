"""Searches over tile shapes, only where FASTFLOW_AUTOTUNE=1 asks for it, and for `python -m bench.tune`.

The table in tiles.py is the default, so that a run starts at once and two runs take the same sums in the same
order. A search costs a few seconds for each width, vocabulary and use of the projection.
"""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import triton
from triton.runtime.errors import OutOfResources

from fastflow_kernels.tiles import Tile

REQUEST = "FASTFLOW_AUTOTUNE"
_found: dict[tuple, Tile] = {}


class Timing(NamedTuple):
    """Median seconds of one launch with this tile; None where the device cannot run it."""

    tile: Tile
    seconds: float | None


def is_requested() -> bool:
    return os.environ.get(REQUEST) == "1"


def time_tiles(launch: Callable[[Tile], object], tiles: Iterable[Tile]) -> list[Timing]:
    """Each tile's time, fastest first; those that do not fit the device last."""
    timings = []
    for tile in tiles:
        try:
            milliseconds = triton.testing.do_bench(lambda tile=tile: launch(tile), return_mode="median")
            timings.append(Timing(tile, milliseconds / 1e3))
        except OutOfResources:
            timings.append(Timing(tile, None))
    return sorted(timings, key=lambda timing: float("inf") if timing.seconds is None else timing.seconds)


def fastest(key: tuple, launch: Callable[[Tile], object], tiles: Iterable[Tile]) -> Tile:
    """The fastest tile for this key, timed at its first use in the process."""
    if key not in _found:
        _found[key] = time_tiles(launch, tiles)[0].tile
    return _found[key]
