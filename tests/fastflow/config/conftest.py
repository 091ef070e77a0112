"""Files of settings."""

from __future__ import annotations

import pytest


@pytest.fixture
def yaml_file(tmp_path):
    """A function that writes a settings file and returns the arguments that read it."""

    def write(text: str) -> list[str]:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write
