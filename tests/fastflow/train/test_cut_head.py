"""A head that stays cut over the ranks gives what a whole one gives."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from cut_head_worker import all_cut_heads, replicated_cut_heads
from fastflow.errors import FastflowError
from fastflow.models.cut.head import check_rows, rows_of_each
from fastflow.models.packed import PackedModel
from rank_worker import spawn
from small_models import make_causal_lm


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 3])
def test_updates_equal_those_of_one_rank(count):
    spawn(count, all_cut_heads)


@pytest.mark.distributed
def test_updates_of_two_replicas_equal_those_of_one_rank():
    spawn(4, replicated_cut_heads)


@pytest.mark.parametrize("vocabulary", [1, 7, 40, 41])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_rows_are_those_of_fsdp(vocabulary, ranks):
    """FSDP2 cuts as torch.chunk does, and gives the ranks for which nothing is left no row."""
    chunks = [len(chunk) for chunk in torch.arange(vocabulary).chunk(ranks)]
    assert rows_of_each(vocabulary, ranks) == chunks + [0] * (ranks - len(chunks))


def test_a_head_that_cannot_be_cut():
    check_rows("my-model", 5, 3)
    with pytest.raises(FastflowError, match=r"gives 2 of the 5 rows .* none are left for the last of 4 ranks"):
        check_rows("my-model", 5, 4)


def test_an_objective_that_asks_for_the_whole_head():
    policy = PackedModel(make_causal_lm(tied=False))
    hidden = torch.zeros(3, 32)
    assert len(policy.head_inputs(hidden)) == 3
    policy.cut_head = Mock()
    with pytest.raises(FastflowError, match=r"call policy.logprobs or policy.flow_loss in place of policy.head_inputs"):
        policy.head_inputs(hidden)
