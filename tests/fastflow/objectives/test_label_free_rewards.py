"""Rewards without labels, by hand and over any groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.objectives.answers import NO_ANSWER
from fastflow.objectives.label_free_rewards import empo, format_reward, random_reward, ttrl, unanswered

CLASSES = st.lists(st.lists(st.integers(NO_ANSWER, 4), min_size=1, max_size=9), min_size=1, max_size=5)


def flat(groups: list[list[int]]) -> tuple[list[int], list[int]]:
    return [entry for group in groups for entry in group], [len(group) for group in groups]


class TestEmpo:
    @pytest.mark.parametrize(
        ("group", "rewards"),
        [
            ([7, 7, 7, 2, 2, NO_ANSWER, 9, 7], [0.5, 0.5, 0.5, 0.25, 0.25, 0, 0.125, 0.5]),
            ([1, 1, 1], [1, 1, 1]),
            ([1, 2, 3], [0, 0, 0]),  # nothing agrees: no signal
            ([NO_ANSWER] * 3, [0, 0, 0]),
            ([5], [0]),
        ],
    )
    def test_by_hand(self, group, rewards):
        assert empo(group, [len(group)]) == rewards

    def test_an_own_cluster(self):
        assert empo([1, 1, NO_ANSWER, NO_ANSWER], [4], unparsed="own_cluster") == [0.5, 0.5, 0.25, 0.25]
        assert empo([1, 2, NO_ANSWER], [3], unparsed="own_cluster") == [0, 0, 0]

    def test_classes_of_other_groups_do_not_count(self):
        assert empo([1, 1, 2, 1, 2, 2], [3, 3]) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])

    @given(CLASSES)
    def test_any_groups(self, groups):
        rewards = empo(*flat(groups))
        assert len(rewards) == len(flat(groups)[0])
        for entry, reward in zip(flat(groups)[0], rewards, strict=True):
            assert 0 <= reward <= 1 and (entry != NO_ANSWER or reward == 0)


class TestTtrl:
    @pytest.mark.parametrize(
        ("group", "rewards"),
        [
            ([4, 1, 1, NO_ANSWER], [0, 1, 1, 0]),
            ([4, 1, 1, 4], [1, 0, 0, 1]),  # a tie: the first
            ([NO_ANSWER, NO_ANSWER, 3], [0, 0, 1]),
            ([NO_ANSWER, NO_ANSWER], [0, 0]),
            ([0], [1]),
        ],
    )
    def test_by_hand(self, group, rewards):
        assert ttrl(group, [len(group)]) == rewards

    @given(CLASSES)
    def test_exactly_one_class_wins_where_there_is_an_answer(self, groups):
        rewards = iter(ttrl(*flat(groups)))
        for group in groups:
            winners = {entry for entry, reward in zip(group, rewards, strict=False) if reward}
            assert len(winners) == (set(group) != {NO_ANSWER}) and NO_ANSWER not in winners


def test_a_coin_depends_on_the_seed_alone_and_is_fair():
    coins = random_reward(range(4000))
    assert coins == random_reward(range(4000)) and coins[7:9] == random_reward([7, 8])
    assert set(coins) == {0.0, 1.0} and abs(sum(coins) / 4000 - 0.5) < 0.04  # five standard errors


def test_format_and_missing_answers():
    assert format_reward([True, False]) == [1.0, 0.0]
    assert unanswered([3, NO_ANSWER], -7.0) == [0.0, -7.0]
