"""Answers of records: in a field, or in a field of one."""

from __future__ import annotations

import numpy as np
import pytest

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.train.answers import GradedAnswers, answer_of, check_answers

VERL = {"prompt": "2 + 2", "reward_model": {"style": "rule", "ground_truth": "4"}}
FIELD = "reward_model.ground_truth"


def check(record, field: str = FIELD) -> None:
    check_answers([Prompt(np.arange(2), record=record, source="file:1")], field)


def test_an_answer_in_a_field_of_a_field():
    assert answer_of(VERL, FIELD) == "4"
    assert answer_of({**VERL, FIELD: "5"}, FIELD) == "5"  # a plain field of that name comes first
    check(VERL)
    reader = GradedAnswers("exact", FIELD)
    try:
        assert reader.are_right(["4", "5"], [VERL, VERL]) == [True, False]
    finally:
        reader.close()


@pytest.mark.parametrize("record", [{}, {"reward_model": None}, {"reward_model": "4"}, {"reward_model": {"a": 1}}])
def test_no_such_answer(record):
    assert answer_of(record, FIELD) is None
    with pytest.raises(FastflowError, match=r"file:1: the record has no 'reward_model\.ground_truth'"):
        check(record)


def test_a_mapping_is_no_answer():
    with pytest.raises(
        FastflowError, match=r"reward_model holds a mapping \(style, ground_truth\).*name the field in it"
    ):
        check(VERL, "reward_model")
