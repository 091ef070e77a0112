"""How the vocabulary is cut into tiles, each of which leaves a total."""

from typing import NamedTuple

TILE = 192  # columns of a tile: two of them on a multiprocessor, one's epilogue under the other's product


class Part(NamedTuple):
    """Columns [start, stop) in tiles of even width, the first of which is tile number `tile`."""

    start: int
    stop: int
    width: int
    tile: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def tiles(self) -> slice:
        return slice(self.tile, self.tile + (self.stop - self.start) // self.width)


def parts_of(vocabulary: int) -> list[Part]:
    """Full tiles, and the narrower one that may be left, by a launch of its own.

    >>> [tuple(part) for part in parts_of(151936)]
    [(0, 151872, 192, 0), (151872, 151936, 64, 791)]
    """
    full = vocabulary // TILE * TILE
    parts = [Part(0, full, TILE, 0), Part(full, vocabulary, vocabulary - full, full // TILE)]
    return [part for part in parts if part.start < part.stop]


def tile_count(vocabulary: int) -> int:
    return -(-vocabulary // TILE)
