"""Words of other trainers lead to the settings that they stand for."""

from __future__ import annotations

import pytest

from fastflow.config import synonyms
from fastflow.config.reader import known_settings, read_config
from fastflow.errors import FastflowError

BATCH = "batch.prompts_per_step or batch.responses_per_prompt or batch.tokens_per_microbatch"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("model.policy", "model.path"),
        ("model.name", "model.path"),
        ("model_name_or_path", "model.path"),
        ("model", "model.path"),
        ("lr", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("learning-rate", "optim.lr"),
        ("batch_size", BATCH),
        ("data.train_batch_size", BATCH),
        ("num_generations", "batch.responses_per_prompt"),
        ("rollout.n", "batch.responses_per_prompt"),
        ("actor_rollout_ref.rollout.n", "batch.responses_per_prompt"),
        ("output_dir", "run.output"),
        ("data.train_files", "data.path"),
        ("optim.learning_rate", "optim.lr"),
    ],
)
def test_a_word_of_another_trainer(tmp_path, name, meant):
    with pytest.raises(FastflowError, match=rf"unknown option --{name}: did you mean {meant}\?"):
        read_config([f"--{name}", "1"])


def test_in_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("model:\n  name_or_path: x\n")
    with pytest.raises(FastflowError, match=r"unknown setting model\.name_or_path: did you mean model\.path\?"):
        read_config(["--config", str(tmp_path / "run.yaml")])


def test_every_meaning_is_a_setting_and_no_word_is_one():
    known = known_settings()
    assert {setting for settings in synonyms._SETTINGS.values() for setting in settings} <= set(known)
    assert not set(synonyms._SETTINGS) & set(known)
