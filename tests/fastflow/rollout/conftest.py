"""What the tests of engines share."""

from __future__ import annotations

import pytest

from fastflow.models.packed import PackedModel
from small_models import make_causal_lm


@pytest.fixture
def model() -> PackedModel:
    return PackedModel(make_causal_lm())
