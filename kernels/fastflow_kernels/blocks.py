"""Cuts the rows into blocks, and goes over them: only one block of logits exists at a time."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

Block = TypeVar("Block")
_listeners: list[Callable[[], None]] = []


def on_block(listener: Callable[[], None]) -> None:
    """Have the ops of this process call a function whenever they begin a block of rows, forward or backward. It tells
    those who look from outside that a call moves on which takes minutes, such as one on a CPU.
    """
    _listeners.append(listener)


def told(blocks: Iterable[Block]) -> Iterator[Block]:
    """Go over blocks, and tell who listens."""
    for block in blocks:
        for listener in _listeners:
            listener()
        yield block


class SequenceBlock(NamedTuple):
    """Rows [row_start, row_stop) and the sequences [sequence_start, sequence_stop) they belong to.

    A block has either whole sequences, where `opens` and `closes` are both true, or one part of a sequence that is
    longer than a block: it `opens` at its first part and `closes` at its last.
    """

    row_start: int
    row_stop: int
    sequence_start: int
    sequence_stop: int
    opens: bool = True
    closes: bool = True

    @property
    def rows(self) -> slice:
        return slice(self.row_start, self.row_stop)

    @property
    def row_count(self) -> int:
        return self.row_stop - self.row_start

    @property
    def sequences(self) -> slice:
        return slice(self.sequence_start, self.sequence_stop)

    @property
    def is_part(self) -> bool:
        return not (self.opens and self.closes)


def row_blocks(row_count: int, block_rows: int) -> list[slice]:
    """Return slices of at most `block_rows` rows, of even size, that cover `row_count` rows."""
    pieces = -(-row_count // block_rows)
    edges = [row_count * piece // pieces for piece in range(pieces + 1)] if pieces else [0]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def sequence_blocks(boundaries: list[int], block_rows: int) -> list[SequenceBlock]:
    """Cut into blocks of at most `block_rows` rows: neighbouring sequences together, a longer one in even parts.

    Makes the fewest blocks that this allows, and among those choices the one whose largest block is smallest.

    boundaries: cu_seqlens as a host list, S+1 row offsets.

    >>> [tuple(block) for block in sequence_blocks([0, 2, 4, 9], block_rows=4)]
    [(0, 4, 0, 2, True, True), (4, 6, 2, 3, True, False), (6, 9, 2, 3, False, True)]
    """
    blocks: list[SequenceBlock] = []
    sequence_count = len(boundaries) - 1
    long = [s for s in range(sequence_count) if boundaries[s + 1] - boundaries[s] > block_rows]
    first = 0
    for sequence in [*long, sequence_count]:
        edges = _even_edges(boundaries, first, sequence, block_rows)
        blocks += (SequenceBlock(boundaries[i], boundaries[j], i, j) for i, j in itertools.pairwise(edges))
        if sequence < sequence_count:
            blocks += _parts(boundaries, sequence, block_rows)
        first = sequence + 1
    return blocks


def _parts(boundaries: list[int], sequence: int, block_rows: int) -> Iterator[SequenceBlock]:
    """One long sequence, in parts of even size."""
    start, stop = boundaries[sequence], boundaries[sequence + 1]
    for part in row_blocks(stop - start, block_rows):
        opens, closes = part.start == 0, start + part.stop == stop
        yield SequenceBlock(start + part.start, start + part.stop, sequence, sequence + 1, opens, closes)


def _even_edges(boundaries: list[int], first: int, last: int, block_rows: int) -> list[int]:
    """Sequence numbers at which the blocks of sequences [first, last) start and end; none is longer than a block."""
    fewest = len(_full_edges(boundaries, first, last, block_rows))
    longest = max((boundaries[s + 1] - boundaries[s] for s in range(first, last)), default=0)
    capacities = range(longest, block_rows)
    smallest = bisect.bisect_left(
        capacities, True, key=lambda rows: len(_full_edges(boundaries, first, last, rows)) <= fewest
    )
    return _full_edges(boundaries, first, last, longest + smallest)


def _full_edges(boundaries: list[int], first: int, last: int, capacity: int) -> list[int]:
    """The same with each block as full as `capacity` rows allow."""
    edges = [first]
    while edges[-1] < last:
        limit = boundaries[edges[-1]] + capacity
        edges.append(bisect.bisect_right(boundaries, limit, edges[-1] + 1, last + 1) - 1)
    return edges
