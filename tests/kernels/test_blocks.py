"""The cut into blocks: everything covered once, in order, within the limit, whole sequences kept whole."""

import itertools

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from fastflow_kernels.block_budget import default_block_rows
from fastflow_kernels.blocks import row_blocks, sequence_blocks


@settings(deadline=None, max_examples=300)
@given(lengths=st.lists(st.integers(0, 30), max_size=12), block_rows=st.integers(1, 25))
def test_sequence_blocks(lengths, block_rows):
    boundaries = [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]
    blocks = sequence_blocks(boundaries, block_rows)
    covered_rows, closed = 0, []
    for block in blocks:
        assert block.row_start == covered_rows and block.row_count <= block_rows
        covered_rows = block.row_stop
        own = range(block.sequence_start, block.sequence_stop)
        if block.is_part:
            assert len(own) == 1 and lengths[own[0]] > block_rows and block.row_count > 0
            assert block.opens == (block.row_start == boundaries[own[0]])
            assert block.closes == (block.row_stop == boundaries[own[0] + 1])
        else:
            assert (block.row_start, block.row_stop) == (boundaries[own[0]], boundaries[own[-1] + 1])
        if block.closes:
            closed += own
    assert covered_rows == boundaries[-1]
    assert closed == list(range(len(lengths)))


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=7), block_rows=st.integers(8, 20))
def test_whole_sequences_go_into_few_and_even_blocks(lengths, block_rows):
    """Against all ways to cut."""
    blocks = sequence_blocks([0, *itertools.accumulate(lengths)], block_rows)
    best = min(
        (len(cuts) + 1, max(sum(lengths[i:j]) for i, j in itertools.pairwise((0, *cuts, len(lengths)))))
        for count in range(len(lengths))
        for cuts in itertools.combinations(range(1, len(lengths)), count)
        if max(sum(lengths[i:j]) for i, j in itertools.pairwise((0, *cuts, len(lengths)))) <= block_rows
    )
    assert (len(blocks), max(block.row_count for block in blocks)) == best


@settings(deadline=None)
@given(row_count=st.integers(0, 200), block_rows=st.integers(1, 50))
def test_row_blocks(row_count, block_rows):
    blocks = row_blocks(row_count, block_rows)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(row_count))
    sizes = [block.stop - block.start for block in blocks]
    assert all(0 < size <= block_rows for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_the_default_is_bounded_and_falls_with_the_vocabulary():
    sizes = [default_block_rows(vocabulary) for vocabulary in (2, 8_000, 32_000, 152_064, 10_000_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8192 and sizes[-1] == 128
