"""What tests/long_run.py measures over a thousand steps, over a few; and that it would see a leak."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "long_run.py"
STEPS = 80
ROOM = 0.08  # so few steps still hold the allocator's first growth; a leak of half a MiB a step is over it


@pytest.fixture(scope="module")
def long_run():
    specification = importlib.util.spec_from_file_location("long_run", FILE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["long_run"] = module  # where a NamedTuple looks its annotations up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["long_run"]


def test_growth_and_leaks_by_hand(long_run):
    flat = long_run.Measured([500] * 100, [10] * 100, 0, 1.0)
    assert (flat.growth, flat.leaked) == (0.0, 0)
    late = long_run.Measured([500] * 50 + [550] * 50, [10, 11] * 50, 0, 1.0)
    assert late.growth == pytest.approx(0.1) and late.leaked == 0  # a save's file is open at times
    leaking = long_run.Measured([500 + step for step in range(100)], [10 + step // 10 for step in range(100)], 0, 1.0)
    assert leaking.growth == pytest.approx(80 / 514.5) and leaking.leaked == 8


@pytest.mark.slow
def test_memory_and_files_stay_also_where_updates_are_skipped(long_run, tmp_path):
    found = long_run.measure(tmp_path, STEPS, bad=True)
    assert 0 < found.skipped < STEPS and len(found.memory) == STEPS
    assert found.growth < ROOM and found.leaked <= 0, found


@pytest.mark.slow
def test_a_leak_is_seen(long_run, tmp_path, monkeypatch):
    from fastflow.train.standing import Standing

    kept: list[object] = []
    step_done = Standing.step_done

    def leaking(self, *arguments) -> None:
        step_done(self, *arguments)
        kept.extend((torch.ones(2**22), (tmp_path / "prompts.jsonl").open()))

    monkeypatch.setattr(Standing, "step_done", leaking)
    found = long_run.measure(tmp_path, STEPS // 2)
    assert found.growth > ROOM and found.leaked >= STEPS // 4
    for file in kept[1::2]:
        file.close()
