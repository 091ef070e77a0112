"""A provider that takes its process with it costs its own row and no other."""

from __future__ import annotations

import pytest

from bench.isolation import measure_apart
from bench.measure import Settings
from bench.shapes import Group, Shape

GROUP = Group("logprob", Shape(40, 16, 96), "float32", "cpu")
NAMES = ["gemms", "eager", "liger_grpo_logprob"]


@pytest.fixture
def deadly_package(tmp_path, monkeypatch):
    """Something called liger_kernel that ends the process; children inherit the path."""
    folder = tmp_path / "liger_kernel" / "chunked_loss"
    folder.mkdir(parents=True)
    (folder / "fused_linear_ppo.py").write_text("import os\n\nos._exit(7)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_the_group_starts_again_without_it(deadly_package, capsys):
    settings = Settings(repeats=3, memory=False)
    (result,) = measure_apart([GROUP], NAMES, settings)
    assert {row["provider"]: row["status"] for row in result.rows} == {
        "gemms": "ok",
        "eager": "ok",
        "liger_grpo_logprob": "failed: its process ended with status 7",
    }
    assert "starting again without it" in capsys.readouterr().out
