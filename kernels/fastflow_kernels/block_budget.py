"""How many rows a block has: what fits the budget, which grows with the memory that stands beside the block anyway."""

from typing import NamedTuple

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
