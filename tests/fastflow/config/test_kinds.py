"""Values that Python gives to settings are held to their types, in the words of the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from fastflow.config.kinds import called, fits
from fastflow.config.schema import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
    SurrogateConfig,
    sections,
)
from fastflow.errors import FastflowError
from fastflow.evaluate import settings as of_evaluate
from fastflow.evaluate.creative.settings import JudgeConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(chat_template="false"), "data.chat_template is 'false', but must be true or false"),
        (lambda: DataConfig(chat_template=1), "data.chat_template is 1, but must be true or false"),
        (lambda: SurrogateConfig(divide_by_std="false"), "surrogate.divide_by_std is 'false', but must be true or"),
        (lambda: RunConfig(steps="ten"), "run.steps is 'ten', but must be a whole number"),
        (lambda: RunConfig(steps=True), "run.steps is True, but must be a whole number"),
        (lambda: RunConfig(steps=2.0), "run.steps is 2.0, but must be a whole number"),
        (lambda: OptimConfig(lr="1e-3"), "optim.lr is '1e-3', but must be a finite number"),
        (lambda: OptimConfig(betas=(0.9,)), "optim.betas is (0.9,), but must be a list of 2 numbers"),
        (lambda: OptimConfig(betas=("a", "b")), "optim.betas is ('a', 'b'), but must be a list of 2 numbers"),
        (lambda: RolloutConfig(stop="END"), "rollout.stop is 'END', but must be a list of texts"),
        (lambda: RolloutConfig(stop=[1]), "rollout.stop is [1], but must be a list of texts"),
        (lambda: DataConfig(gym="x"), "data.gym is 'x', but must be a mapping, as in {name: value}"),
        (lambda: DataConfig(system=1), "data.system is 1, but must be text"),
        (lambda: ModelConfig(path=Path("m")), f"model.path is {Path('m')!r}, but must be text"),
        (lambda: ModelConfig(attention=["sdpa"]), "model.attention is ['sdpa']: "),
        (lambda: RunConfig(steps="1" * 10_000), "(cut here), but must be a whole number"),
    ],
)
def test_a_wrong_type(make, message):
    with pytest.raises(FastflowError) as caught:
        make()
    assert message in str(caught.value) and len(str(caught.value)) < 300


def test_whole_numbers_are_numbers_and_lists_become_tuples():
    assert OptimConfig(lr=1, betas=(0, 0.5)).lr == 1
    assert RolloutConfig(stop=["a", "b"]) == RolloutConfig(stop=("a", "b"))
    assert DataConfig(gym={"size": 3}, path="gym:x").gym == {"size": 3}


@pytest.mark.parametrize("section", [*sections().values(), of_evaluate.BenchmarkConfig, JudgeConfig])
def test_every_type_has_words_and_takes_its_default(section):
    for entry in dataclasses.fields(section):
        hint = typing.get_type_hints(section)[entry.name]
        assert fits(entry.default, hint)
        assert typing.get_origin(hint) is Literal or called(hint), entry.name


@pytest.mark.parametrize(
    ("value", "hint", "answer"),
    [
        (None, str | None, True),
        (None, str, False),
        (("a",), tuple[str, ...], True),
        ((), tuple[str, ...], True),
        ((1,), tuple[float, float], False),
        ({"a": 1}, Mapping[str, Any] | None, True),
        (1, Literal["a"], False),
        (True, float, False),
        (0, bool, False),
    ],
)
def test_fits(value, hint, answer):
    assert fits(value, hint) is answer


def test_settings_are_made_without_torch():
    code = "import sys, fastflow.config.schema as s; s.Config(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_section_names_the_settings_that_differ_from_their_defaults():
    assert OptimConfig().changed() == {}
    assert OptimConfig(lr=1e-3, betas=[0.9, 0.99]).changed() == {"optim.lr": 1e-3, "optim.betas": (0.9, 0.99)}
    assert EvalConfig(every=0, samples=2).changed() == {"eval.samples": 2}
