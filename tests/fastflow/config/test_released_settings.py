"""The preset powerflow-released sets every switch of the released code, and what contradicts one is refused."""

from __future__ import annotations

import dataclasses

import pytest

from fastflow.config.presets import PRESETS, RELEASED
from fastflow.config.reader import read_config
from fastflow.config.released import ReleasedConfig
from refusals import refusal


def test_the_preset_sets_every_switch_and_nothing_else():
    config, _ = read_config(["--preset=powerflow-released"])
    paper, _ = read_config(["--preset=paper-reasoning-base"])
    assert paper.released == ReleasedConfig()
    for entry in dataclasses.fields(ReleasedConfig):
        assert getattr(config.released, entry.name) != entry.default, entry.name
    same = dataclasses.replace(config, released=paper.released, run=paper.run, importance=paper.importance)
    assert same == paper and config.importance.source == "recompute"
    assert (config.importance.clip_low, config.importance.clip_high) == (0.2, 0.28)  # which its code has in words
    assert PRESETS["powerflow-released"].items() >= RELEASED.items()


@pytest.mark.parametrize("switch", RELEASED)
def test_each_switch_stands_alone(switch):
    value = RELEASED[switch]
    config, _ = read_config([f"--{switch}={str(value).lower() if isinstance(value, bool) else value}"])
    section, name = switch.split(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--released.token_mask=true", "--objective.name=tb_token"],
            ("token_mask serves powerflow alone", "tb_token"),
        ),
        (
            ["--released.log_z_offset=0.36", "--objective.name=flowrl", "--objective.reward=answer"],
            ("log_z_offset serves powerflow alone", "flowrl"),
        ),
        (
            ["--released.log_z_dropout=0.1", "--objective.log_z=group_mean"],
            ("log_z_dropout serves the learned log_z", "objective.log_z = group_mean"),
        ),
        (["--released.log_z_rate=policy", "--objective.name=empo"], ("log_z_rate serves the learned log_z", "empo")),
        (["--released.log_z_prompt=without_last", "--objective.name=distil"], ("log_z_prompt", "distil")),
        (["--released.log_z_rate=policy", "--optim.log_z_lr=0.01"], ("optim.log_z_lr = 0.01", "would be ignored")),
        (["--released.log_z_dropout=1"], ("released.log_z_dropout is 1, but must be below 1",)),
    ],
)
def test_contradictions_are_refused(arguments, words):
    said = refusal(arguments)
    for word in words:
        assert word in said, said
