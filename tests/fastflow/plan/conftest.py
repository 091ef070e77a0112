"""Models of the plan's tests."""

from __future__ import annotations

import pytest

from plans import LARGE
from small_models import FAMILIES, VOCABULARY, make_causal_lm, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models by name; read only. "large" has a config.json alone."""
    home = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_model(home / family, family=family, head_dim=16)
        save_model(home / f"{family}-untied", family=family, tied=False)
    save_model(home / "larger", vocab_size=VOCABULARY + 8)
    make_causal_lm("llama", **LARGE).config.save_pretrained(home / "large")
    return home
