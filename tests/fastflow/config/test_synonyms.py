"""Words of other trainers lead to the settings that they stand for."""

from __future__ import annotations

import re

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
        ("loss_type", "surrogate.average"),
        ("actor_rollout_ref.actor.loss_agg_mode", "surrogate.average"),
        ("beta", "surrogate.kl or objective.beta"),
        ("kl_coef", "surrogate.kl"),
        ("actor_rollout_ref.actor.kl_loss_coef", "surrogate.kl"),
        ("use_kl_loss", "surrogate.kl"),
        ("ppo_mini_batch_size", "batch.updates_per_rollout"),
        ("importance_sampling_level", "surrogate.ratio"),
        ("scale_rewards", "surrogate.divide_by_std"),
        ("log_completions", "run.samples_every or run.samples_per_dump"),
        ("eval_steps", "eval.every"),
        ("trainer.test_freq", "eval.every"),
        ("mask_truncated_completions", "objective.truncated"),
        ("load_best_model_at_end", "run.best_metric"),
        ("metric_for_best_model", "run.best_metric"),
        ("eval.max_tokens", "eval.max_response_tokens"),  # fastflow evaluate's own word
        ("eval.n", "eval.samples"),
        ("presets", "--preset"),
    ],
)
def test_a_word_of_another_trainer(tmp_path, name, meant):
    with pytest.raises(FastflowError, match=rf"unknown option --{name}: did you mean {meant}\?"):
        read_config([f"--{name}", "1"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resume_from_checkpoint", "continue a run by --resume RUN"),
        ("trainer.n_gpus_per_node", "--devices N"),
        ("typical_p", "rollout.temperature, rollout.top_p, rollout.top_k and rollout.min_p"),
        ("actor_rollout_ref.rollout.typical_p", "no such setting here"),
        ("repetition_penalty", "no such setting here"),
        ("delta", "importance.clip_low and importance.clip_high alone"),
        ("num_iterations", "each response is trained on once"),
        ("ppo_epochs", "each response is trained on once"),
        ("entropy_coeff", "no term for the entropy"),
        ("reward_weights", "one reward"),
        ("push_to_hub", "no such setting here"),
    ],
)
def test_a_word_for_which_there_is_no_setting(tmp_path, name, said):
    with pytest.raises(FastflowError) as caught:
        read_config([f"--{name}", "1"])
    assert said in str(caught.value) and "did you mean" not in str(caught.value)
    (tmp_path / "run.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(FastflowError) as caught:
        read_config(["--config", str(tmp_path / "run.yaml")])
    assert said in str(caught.value)


def test_every_setting_in_advice_exists_and_no_word_has_both():
    told = " ".join(synonyms._ADVICE.values())
    assert set(re.findall(r"\b[a-z]+\.[a-z_]+\b", told)) <= set(known_settings())
    assert not set(synonyms._ADVICE) & set(synonyms._SETTINGS)


def test_in_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("model:\n  name_or_path: x\n")
    with pytest.raises(FastflowError, match=r"unknown setting model\.name_or_path: did you mean model\.path\?"):
        read_config(["--config", str(tmp_path / "run.yaml")])


def test_every_meaning_is_a_setting_and_no_word_is_one():
    known = known_settings()
    assert {setting for settings in synonyms._SETTINGS.values() for setting in settings} <= set(known)
    assert not set(synonyms._SETTINGS) & set(known)
