"""A model's own dropout is off while it trains; that of adapters is as it was set."""

from __future__ import annotations

import logging

import pytest
import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import pack
from fastflow.models.opening import load_policy
from fastflow.models.scoring import token_logprobs
from small_models import make_groups, save_model

RATES = {
    "granite": {"attention_dropout": 0.3},
    "phi3": {"attention_dropout": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
}


@pytest.mark.parametrize("family", RATES)
def test_training_computes_the_log_probs_of_the_model_that_samples(family, tmp_path, rng, caplog):
    settings = ModelConfig(path=str(save_model(tmp_path / "model", family=family, **RATES[family])), device="cpu")
    with caplog.at_level(logging.INFO):
        policy = load_policy(settings, LoraConfig())
    assert "the model's own dropout is off (" in caplog.text and "attention_dropout 0.3" in caplog.text
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    policy.model.train()
    training = token_logprobs(policy, batch)
    policy.model.eval()
    torch.testing.assert_close(training, token_logprobs(policy, batch))
    policy.causal_lm.save_pretrained(tmp_path / "saved")  # as it came
    assert '"attention_dropout": 0.3' in (tmp_path / "saved" / "config.json").read_text()


def test_adapters_keep_theirs(tmp_path):
    pytest.importorskip("peft")
    settings = ModelConfig(path=str(save_model(tmp_path / "model", family="phi3", resid_pdrop=0.3)), device="cpu")
    policy = load_policy(settings, LoraConfig(rank=2, dropout=0.25))
    rates = {module.p for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0, 0.25}


def test_a_model_without_any_is_loaded_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load_policy(ModelConfig(path=str(save_model(tmp_path / "model")), device="cpu"), LoraConfig())
    assert "dropout" not in caplog.text
