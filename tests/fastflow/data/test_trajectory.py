"""Groups of trajectories: parts of them, and shares for updates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.data.trajectory import Group, Prompt, Trajectory, only, shares_of

ENDED, CUT = (Trajectory(np.array([1]), np.zeros(1, dtype=np.float32), reason) for reason in ("stop", "length"))


def group(*trajectories: Trajectory) -> Group:
    return Group(Prompt(np.array([1])), trajectories)


def ends(one: Group) -> bool:
    return one.trajectories[0] is ENDED


def test_a_part_of_the_trajectories():
    first, second, third = group(ENDED, CUT), group(CUT), group(CUT, ENDED, ENDED)
    kept = only([first, second, third], [True, False, False, False, True, True])
    assert [len(one.trajectories) for one in kept] == [1, 2]
    assert all(entry is ENDED for one in kept for entry in one.trajectories)
    assert only([second], [False]) == []


@pytest.mark.parametrize(
    ("pattern", "count", "sizes"),
    [
        ("1111", 2, [2, 2]),
        ("11111", 2, [2, 3]),
        ("0101", 2, [2, 2]),
        ("1000", 2, [4]),
        ("1001000", 2, [1, 6]),
        ("0000", 2, [2, 2]),  # none teaches: the learner skips them
        ("1", 3, [1]),
    ],
)
def test_shares_by_hand(pattern, count, sizes):
    groups = [group(ENDED if letter == "1" else CUT) for letter in pattern]
    assert [len(share) for share in shares_of(groups, count, ends)] == sizes


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 5))
def test_each_share_teaches_as_much(pattern, count):
    groups = [group(ENDED if teaches else CUT) for teaches in pattern]
    shares = shares_of(groups, count, ends)
    assert [one for share in shares for one in share] == groups
    numbers = [sum(map(ends, share)) for share in shares]
    assert max(numbers) - min(numbers) <= 1 and len(shares) <= count
    assert not any(pattern) or min(numbers) >= 1
