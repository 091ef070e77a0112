"""Several gloo ranks on the CPU give what one gives."""

from __future__ import annotations

import pytest

from fastflow.data.dealing import costs, deal
from rank_worker import all_learners, replicated_learners, spawn


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 3])
def test_updates_equal_those_of_one_rank(count):
    spawn(count, all_learners)


@pytest.mark.distributed
def test_updates_of_two_replicas_equal_those_of_one_rank():
    spawn(4, replicated_learners)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_a_deal_is_complete_and_even(ranks, rng):
    lengths = [int(length) for length in rng.integers(1, 400, 50)]
    price = costs(lengths, 32)
    shares = deal(price, ranks)
    assert sorted(index for share in shares for index in share) == list(range(50))
    loads = [sum(price[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(price)
    assert deal([5], 3) == [[0], [], []]
