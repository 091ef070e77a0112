"""Fixtures of the trainer's tests."""

from __future__ import annotations

import numpy as np
import pytest

from small_models import save_model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def model_directory(tmp_path):
    """A saved model with a tokenizer over single letters and digits."""
    return save_model(tmp_path / "model")
