"""The distance between the sampler's log-probs and the trainer's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.run.mismatch import mismatch

LOGPROBS = st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=5), min_size=1, max_size=5)


def arrays(nested) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float32) for row in nested]


@given(LOGPROBS, st.floats(-1, 1))
def test_a_constant_difference_is_its_own_mean_and_maximum(rows, shift):
    sampler = [row.astype(np.float64) for row in arrays(rows)]
    found = mismatch(sampler, [row + shift for row in sampler])
    assert found.mean == pytest.approx(abs(shift), abs=1e-12)
    assert found.p99 == pytest.approx(abs(shift), abs=1e-12)
    assert found.max == pytest.approx(abs(shift), abs=1e-12)
    assert found.kl == pytest.approx(np.expm1(shift) - shift, abs=1e-12)
    assert found.kl >= 0


def test_one_outlier_shows_in_the_maximum_before_the_mean():
    sampler = [np.full(1000, -1.0, dtype=np.float32)]
    trainer = [np.full(1000, -1.0, dtype=np.float32)]
    trainer[0][7] = -2.0
    found = mismatch(sampler, trainer)
    assert (found.mean, found.p99, found.max) == (pytest.approx(1e-3), 0.0, 1.0)


def test_the_kl_estimate_is_the_kl_divergence():
    """Over many tokens drawn from one distribution and scored by another."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    tokens = rng.choice(5, 200_000, p=p)
    found = mismatch([np.log(p)[tokens]], [np.log(q)[tokens]])
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.03)
