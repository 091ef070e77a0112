"""Quantiles of Student's t against tables."""

import pytest

from fastflow.evaluate.estimates import NORMAL_95
from fastflow.evaluate.student import student_95

TABLE = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 11: 2.200985, 30: 2.042272, 120: 1.979930}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_tables(freedom):
    assert student_95(freedom) == pytest.approx(TABLE[freedom], abs=1e-6)


def test_many_draws_are_normal():
    assert NORMAL_95 < student_95(100_001) < student_95(100_000) < NORMAL_95 + 1e-4
