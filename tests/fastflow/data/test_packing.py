"""Packing loses nothing, invents nothing, and points every row at its target."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.data.packing import PackedBatch, first_fit_decreasing, input_length, pack
from fastflow.data.trajectory import Group, Prompt, Trajectory

token_ids = st.integers(0, 99)


def ids(least: int, most: int):
    return st.lists(token_ids, min_size=least, max_size=most).map(lambda values: np.array(values, dtype=np.int64))


trajectories = ids(0, 12).map(lambda y: Trajectory(y, np.zeros(len(y), dtype=np.float32), "stop"))
groups_strategy = st.lists(
    st.builds(Group, ids(1, 9).map(Prompt), st.lists(trajectories, min_size=1, max_size=4).map(tuple)),
    min_size=1,
    max_size=5,
)


def flat_of(groups):
    return [(group.prompt, trajectory) for group in groups for trajectory in group.trajectories]


def unpack(batch: PackedBatch) -> dict[int, tuple[list[int], list[int]]]:
    """Prompt and response of every sequence of a batch, read back from its tensors alone."""
    found = {}
    starts, bounds = batch.cu_seqlens.tolist(), batch.response_cu_seqlens.tolist()
    for place, sequence in enumerate(batch.sequences.tolist()):
        owned = batch.prompt_rows[batch.prompt_owner == place]
        rows = batch.rows[bounds[place] : bounds[place + 1]]
        targets = batch.targets[bounds[place] : bounds[place + 1]]
        assert all(starts[place] <= row < starts[place + 1] for row in [*owned.tolist(), *rows.tolist()])
        prompt, response = batch.input_ids[owned].tolist(), targets.tolist()
        # input at a row is the token before its target: the prompt's last, then the response shifted by one
        assert batch.input_ids[rows].tolist() == [prompt[-1], *response][: len(response)]
        assert batch.input_ids[starts[place] : starts[place + 1]].tolist() == prompt + response[:-1]
        found[sequence] = (prompt, response)
    return found


@settings(max_examples=80, deadline=None)
@given(groups_strategy, st.integers(1, 40))
def test_every_sequence_can_be_read_back_exactly_once(groups, capacity):
    flat = flat_of(groups)
    found = {}
    for batch in pack(groups, capacity):
        part = unpack(batch)
        assert not found.keys() & part.keys()
        found.update(part)
    expected = {i: (p.ids.tolist(), t.response_ids.tolist()) for i, (p, t) in enumerate(flat)}
    assert found == expected


@settings(max_examples=80, deadline=None)
@given(groups_strategy, st.integers(1, 40))
def test_the_capacity_is_kept_unless_one_sequence_alone_exceeds_it(groups, capacity):
    for batch in pack(groups, capacity):
        assert batch.tokens <= capacity or len(batch.lengths) == 1
        assert batch.tokens == batch.input_ids.numel() == sum(batch.lengths)


@settings(max_examples=80, deadline=None)
@given(groups_strategy, st.integers(1, 60))
def test_positions_boundaries_and_counts(groups, capacity):
    flat = flat_of(groups)
    for batch in pack(groups, capacity):
        sequences = batch.sequences.tolist()
        chosen = [flat[index] for index in sequences]
        assert batch.lengths == tuple(input_length(*pair) for pair in chosen)
        assert batch.prompt_lengths == tuple(len(prompt.ids) for prompt, _ in chosen)
        assert batch.response_lengths == tuple(len(trajectory) for _, trajectory in chosen)
        assert batch.cu_seqlens.tolist() == np.cumsum([0, *batch.lengths]).tolist()
        assert batch.response_cu_seqlens.tolist() == np.cumsum([0, *batch.response_lengths]).tolist()
        expected = [place for length in batch.lengths for place in range(length)]
        assert batch.position_ids.tolist() == expected
        assert batch.prompt_owner.tolist() == np.repeat(range(len(chosen)), batch.prompt_lengths).tolist()
        assert len(batch.rows) == len(batch.targets) == sum(batch.response_lengths)
        assert len(set(batch.rows.tolist())) == len(batch.rows)
        for name in ("cu_seqlens", "response_cu_seqlens"):
            assert getattr(batch, name).dtype == torch.int32
        for name in ("input_ids", "position_ids", "rows", "targets", "prompt_rows", "prompt_owner", "sequences"):
            assert getattr(batch, name).dtype == torch.int64


@settings(max_examples=50, deadline=None)
@given(groups_strategy, st.integers(1, 60))
def test_packing_is_deterministic(groups, capacity):
    first, second = pack(groups, capacity), pack(groups, capacity)
    assert [batch.sequences.tolist() for batch in first] == [batch.sequences.tolist() for batch in second]


def test_a_worked_example():
    """Prompts (1 2) and (7) with responses (3 4 5), () and (8): 4, 2 and 1 inputs."""
    group = Group(Prompt(np.array([1, 2])), (make_trajectory([3, 4, 5]), make_trajectory([])))
    other = Group(Prompt(np.array([7])), (make_trajectory([8]),))
    (batch,) = pack([group, other], 100)
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 1, 2, 7]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 4, 6, 7]
    assert batch.rows.tolist() == [1, 2, 3, 6]
    assert batch.targets.tolist() == [3, 4, 5, 8]
    assert batch.response_cu_seqlens.tolist() == [0, 3, 3, 4]
    assert batch.prompt_rows.tolist() == [0, 1, 4, 5, 6]
    assert batch.prompt_owner.tolist() == [0, 0, 1, 1, 2]
    assert batch.sequences.tolist() == [0, 1, 2]


def make_trajectory(response: list[int]) -> Trajectory:
    values = np.array(response, dtype=np.int64)
    return Trajectory(values, np.zeros(len(values), dtype=np.float32), "stop")


def test_a_batch_of_empty_responses_only():
    group = Group(Prompt(np.array([1, 2])), (make_trajectory([]), make_trajectory([])))
    (batch,) = pack([group], 10)
    assert batch.rows.shape == batch.targets.shape == (0,)
    assert batch.response_cu_seqlens.tolist() == [0, 0, 0]
    assert batch.tokens == 4


def test_a_sequence_over_the_budget_stands_alone_and_is_reported(caplog):
    group = Group(Prompt(np.array([1])), tuple(make_trajectory([2] * length) for length in (3, 12, 2, 30)))
    with caplog.at_level(logging.WARNING, logger="fastflow.data.packing"):
        batches = pack([group], 10)
    assert sorted(batch.sequences.tolist() for batch in batches) == [[0, 2], [1], [3]]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "sequences over batch.tokens_per_microbatch = 10: 2 of 4 (longest: 30 tokens)" in message


def test_exactly_full_is_not_over_the_budget(caplog):
    group = Group(Prompt(np.array([1])), (make_trajectory([2] * 10), make_trajectory([2] * 10)))
    with caplog.at_level(logging.WARNING, logger="fastflow.data.packing"):
        assert [batch.tokens for batch in pack([group], 10)] == [10, 10]
        assert [batch.tokens for batch in pack([group], 20)] == [20]
    assert not caplog.records


def test_moving_a_batch_keeps_the_host_counts():
    (batch,) = pack([Group(Prompt(np.array([1, 2])), (make_trajectory([3, 4]),))], 10)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.cu_seqlens.device.type == moved.sequences.device.type == "meta"
    assert (moved.lengths, moved.response_lengths, moved.prompt_lengths) == ((3,), (2,), (2,))
    assert moved.tokens == 3


class TestFirstFitDecreasing:
    @settings(deadline=None)
    @given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 50))
    def test_a_partition_within_capacity(self, lengths, capacity):
        bins = first_fit_decreasing(lengths, capacity)
        assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths)))
        for bin_ in bins:
            assert len(bin_) == 1 or sum(lengths[index] for index in bin_) <= capacity

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
    def test_no_two_bins_could_be_one(self, lengths, capacity):
        """First fit opens a bin only when no open one has room, so two bins together always overflow."""
        loads = sorted(sum(lengths[index] for index in bin_) for bin_ in first_fit_decreasing(lengths, capacity))
        assert len(loads) < 2 or loads[0] + loads[1] > capacity

    @settings(deadline=None)
    @given(st.integers(2, 9), st.integers(1, 8), st.randoms(use_true_random=False))
    def test_within_the_classic_bound_of_a_known_optimum(self, parts, full_bins, random):
        """Cut `full_bins` bins of 60 into random parts: the optimum is `full_bins`, and FFD needs at most 11/9 + 1."""
        capacity = 60
        lengths = []
        for _ in range(full_bins):
            cuts = sorted(random.sample(range(1, capacity), parts - 1))
            lengths += [end - start for start, end in zip([0, *cuts], [*cuts, capacity], strict=True)]
        random.shuffle(lengths)
        bins = first_fit_decreasing(lengths, capacity)
        assert math.ceil(sum(lengths) / capacity) == full_bins <= len(bins) <= 11 / 9 * full_bins + 1

    @settings(deadline=None)
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=80))
    def test_small_items_come_close_to_the_lower_bound(self, lengths):
        """With items of at most a tenth of the capacity, every bin but the last is more than nine tenths full."""
        capacity = 40
        assert len(first_fit_decreasing(lengths, capacity)) <= math.ceil(sum(lengths) / (0.9 * capacity))

    @pytest.mark.parametrize(
        ("lengths", "capacity", "bins"),
        [
            ([], 5, []),
            ([5, 5, 5], 5, [[0], [1], [2]]),
            ([2, 3, 2, 3], 5, [[1, 0], [3, 2]]),
            ([1, 7, 1], 5, [[1], [0, 2]]),
            ([4, 4, 4], 8, [[0, 1], [2]]),
        ],
    )
    def test_worked_examples(self, lengths, capacity, bins):
        assert first_fit_decreasing(lengths, capacity) == bins
