"""Cuts the rows into blocks: only one block of logits exists at a time."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

# Memory of one block. On a CPU a block in bfloat16 sends its share of the head's gradient through one sweep over the
# float32 sum, so that fewer and larger blocks are faster; what stands beside the block anyway sets the measure. On CUDA
# each block reads and writes that sum once, too, and larger products run nearer to the device's rate.
LEAST_BLOCK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
SHARE_OF_BESIDE = {"cpu": 0.5, "cuda": 1.0}
FEWEST_ROWS = 128
MOST_ROWS = {"cpu": 8192, "cuda": 16384}
ROW_QUANTUM = {"cpu": 1, "cuda": 128}  # rows of a tile: a block that ends within one wastes the rest
# A buffer's rows on CUDA: calls of nearly the same size take the same memory, which the allocator then has at hand.
BUFFER_QUANTUM = 256


def default_block_rows(
    vocabulary: int,
    device_type: str = "cpu",
    entry_bytes: int = 4,
    bytes_beside: int = 0,
    block_bytes: int | None = None,
) -> int:
    """Return the rows of a block when the caller names none: what fits the budget, within bounds.

    entry_bytes: memory of a block per row and vocabulary entry. bytes_beside: memory that stands beside the block,
    the head's gradient in the type of its sum. block_bytes: the budget; None for the device's, which grows with
    bytes_beside.

    >>> default_block_rows(32000), default_block_rows(152064), default_block_rows(100)
    (524, 128, 8192)
    >>> default_block_rows(151936, "cuda", entry_bytes=2)
    3456
    >>> default_block_rows(152064, bytes_beside=4 * 1024 * 152064)
    512
    """
    kind = "cpu" if device_type == "cpu" else "cuda"
    budget = block_bytes or max(LEAST_BLOCK_BYTES[kind], int(SHARE_OF_BESIDE[kind] * bytes_beside))
    rows = min(budget // (entry_bytes * vocabulary), MOST_ROWS[kind])
    return max(FEWEST_ROWS, rows - rows % ROW_QUANTUM[kind])


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


class HeadSum(NamedTuple):
    """The gradient of a head's weight, in units of a row of a block: how many rows take as much memory as it."""

    finished: int  # in the type in which it leaves the op
    summed: int  # in the type of its sum over blocks
    is_rounded: bool  # whether these types differ, so that the second is rounded to the first at the end


def cuda_block_rows(
    vocabulary: int, entry_bytes: int, row_count: int, longest: int, head: HeadSum | None, block_bytes: int | None
) -> int:
    """Return the rows of a block on CUDA when the caller names none.

    row_count: of the call. longest: rows of its longest sequence; a sequence that is cut needs a second sum. head: None
    where its gradient is not needed. block_bytes: the budget; None for the default.
    """
    beside = 0 if head is None else head.summed * entry_bytes * vocabulary
    rows = default_block_rows(vocabulary, "cuda", entry_bytes, beside, block_bytes)
    return rows if head is None else _rows_that_take_less(rows, row_count, longest, head)


def _rows_that_take_less(rows: int, row_count: int, longest: int, head: HeadSum) -> int:
    """Raise `rows` where a larger block takes no more memory than several full ones and their sums.

    A single block needs no sum. A sequence that is not cut needs no second sum.

    >>> head = HeadSum(finished=1536, summed=3072, is_rounded=True)
    >>> [_rows_that_take_less(3456, count, 1000, head) for count in (3000, 4992, 4993)]
    [3456, 4992, 3456]
    >>> [_rows_that_take_less(3456, 20000, longest, head) for longest in (3456, 6528, 6529)]
    [3456, 6528, 3456]
    """
    several = head.summed + max(rows, head.finished if head.is_rounded else 0)
    if head.is_rounded and head.finished + row_count <= several:
        return max(rows, row_count)
    return longest if rows < longest <= rows + head.summed else rows


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
