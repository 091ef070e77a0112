"""Which responses a dump holds."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from cli_runs import settings
from fastflow.train.program import fine_tune

NUMBER = {}


def by_order(text, record):
    """Each response has another reward: the fifth the highest, the seventh the lowest."""
    place = NUMBER.setdefault("place", 0) % 12
    NUMBER["place"] += 1
    return {4: 9.0, 6: -9.0}.get(place, place / 100)


@pytest.mark.parametrize(("count", "held"), [(2, {9.0, -9.0}), (1, {9.0})])
def test_the_highest_and_the_lowest_reward_come_first(tmp_path, count, held):
    NUMBER.clear()
    given = {name: value for name, value in settings(tmp_path).items() if name != "objective.alpha"}
    own = {"objective.name": "grpo", "objective.reward": by_order, "run.samples_per_dump": count, "run.steps": 1}
    fine_tune(given | own, console=Console(quiet=True))
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["reward"] for line in lines} == held
