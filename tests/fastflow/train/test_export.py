"""The exported policy carries what was learned, and what rounding takes of it is told truly."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cli_runs import settings
from fastflow.config.reader import read_config
from fastflow.demo.small_model import make_tokenizer
from fastflow.models.packed import PackedModel
from fastflow.models.weights.merging import RoundingLoss, adapted_layers, merged_weight, weight_update
from fastflow.train.command import train
from fastflow.train.saves.export import Exporter
from fastflow.train.trainer import Trainer
from small_models import CARRYING, FAMILIES, make_causal_lm, save_model
from weight_updates import relative_error, updates


def config(home, **changes):
    return read_config([f"--{name}={value}" for name, value in settings(home, **changes).items()])[0]


def run(home, **changes):
    return train(config(home, **changes), Console(quiet=True))


def state(home) -> dict:
    newest = (home / "run" / "policy").resolve().parent
    return json.loads((newest / "trainer" / "state.json").read_text())["export"]


LORA = {"lora__rank": 4, "model__dtype": "bfloat16", "optim__lr": 1e-5}


@pytest.fixture
def bfloat16_model(tmp_path):
    return save_model(tmp_path / "model", dtype=torch.bfloat16)


class TestAdaptersInBfloat16:
    """`--lora.rank 16 --model.dtype bfloat16 --optim.lr 1e-5`: updates far smaller than bfloat16's spacing."""

    def test_auto_exports_what_was_learned(self, bfloat16_model, tmp_path, caplog):
        caplog.set_level(logging.INFO, "fastflow")
        policy = run(tmp_path, **LORA)
        report = state(tmp_path)
        error = relative_error(policy, bfloat16_model, tmp_path / "run" / "adapter")
        assert json.loads((policy / "config.json").read_text())["dtype"] == report["dtype"] == "float32"
        assert report["update_error"] == pytest.approx(error, rel=1e-3) and error < 1e-3
        assert report["update_error_in_bfloat16"] > 0.5  # which is what the export was before
        assert f"takes {100 * error:.3g} % of what was learned, where bfloat16 would take" in caplog.text

    def test_it_is_said_once_a_run(self, bfloat16_model, tmp_path, caplog):
        caplog.set_level(logging.INFO, "fastflow")
        run(tmp_path, **LORA, run__save_every=1, run__steps=2)
        assert caplog.text.count("of what was learned") == 1

    @pytest.mark.parametrize("lr", [1e-5, 1e-3, 1e-1])
    def test_bfloat16_says_truly_what_it_takes(self, lr, bfloat16_model, tmp_path, caplog):
        policy = run(tmp_path, **{**LORA, "optim__lr": lr}, run__export_dtype="bfloat16")
        report = state(tmp_path)
        error = relative_error(policy, bfloat16_model, tmp_path / "run" / "adapter")
        assert load_file(policy / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
        assert report["dtype"] == "bfloat16"
        assert report["update_error"] == pytest.approx(error, rel=1e-6)
        assert ("adapter/ has all of it; set --run.export_dtype float32" in caplog.text) == (error > 0.05)
        if error > 0.05:
            assert f"rounding takes {100 * error:.3g} % of what was learned" in " ".join(caplog.text.split())

    def test_auto_stays_with_bfloat16_where_that_takes_little(self, bfloat16_model, tmp_path):
        policy = run(tmp_path, **{**LORA, "optim__lr": 0.3})
        report = state(tmp_path)
        assert report["dtype"] == "bfloat16" and report["update_error"] == report["update_error_in_bfloat16"] < 0.05
        assert report["update_error"] == pytest.approx(
            relative_error(policy, bfloat16_model, tmp_path / "run" / "adapter"), rel=1e-6
        )

    def test_the_adapter_on_its_base_is_the_live_policy(self, bfloat16_model, tmp_path):
        import peft
        from transformers import AutoModelForCausalLM

        trainer = Trainer(config(tmp_path, **LORA), Console(quiet=True))
        trainer.run()
        base = AutoModelForCausalLM.from_pretrained(bfloat16_model, dtype=torch.bfloat16)
        again = dict(peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").named_parameters())
        live = dict(trainer.learner.policy.model.named_parameters())
        assert again.keys() == live.keys()
        assert all(torch.equal(again[name], live[name]) for name in live)


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_and_live_policy_agree(family, tmp_path):
    save_model(tmp_path / "model", family=family, tied=family != "qwen2")
    trainer = Trainer(config(tmp_path, lora__rank=4, optim__lr=1e-2), Console(quiet=True))
    policy = trainer.run()
    assert relative_error(policy, tmp_path / "model", tmp_path / "run" / "adapter") < 1e-5
    assert state(tmp_path)["update_error"] < 1e-5
    exported, live = load_file(policy / "model.safetensors"), dict(trainer.learner.policy.causal_lm.named_parameters())
    for name, layer in adapted_layers(trainer.learner.policy.causal_lm):
        merged = live[f"{name}.base_layer.weight"].double() + weight_update(layer, torch.float64)
        assert torch.equal(exported[f"{name}.weight"], merged.float())  # rounded once
    adapted = updates(tmp_path / "run" / "adapter")
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        if name not in adapted:
            assert torch.equal(weight, exported[name])


def test_an_export_does_not_touch_the_live_policy(tmp_path):
    trainer = Trainer(config(tmp_path, lora__rank=4, optim__lr=1e-2), Console(quiet=True))
    trainer.step(1)
    before = {name: weight.clone() for name, weight in trainer.learner.policy.model.named_parameters()}
    trainer.save()
    trainer.saver.wait()
    after = dict(trainer.learner.policy.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in after)
    trainer.step(2)  # and it trains on
    trainer.close()


@pytest.mark.parametrize("lr", [1e-6, 1e-2])
def test_rounding_a_fully_trained_policy_is_told_too(lr, tmp_path, caplog):
    """float32 weights that are saved as bfloat16, against the weights that they started from."""
    save_model(tmp_path / "model", dtype=torch.bfloat16)
    trainer = Trainer(config(tmp_path, optim__lr=lr, run__export_dtype="bfloat16"), Console(quiet=True))
    exported = load_file(trainer.run() / "model.safetensors")
    before = load_file(tmp_path / "model" / "model.safetensors")
    error = update = 0.0
    for name, weight in trainer.learner.policy.causal_lm.named_parameters():
        learned = weight.detach().double() - before[name].double()
        error += float((exported[name].double() - before[name].double() - learned).square().sum())
        update += float(learned.square().sum())
    error = (error / update) ** 0.5
    assert state(tmp_path)["update_error"] == pytest.approx(error, rel=1e-6)
    assert ("of what was learned" in caplog.text) == (error > 0.05)


@pytest.mark.parametrize("changes", [{}, {"model__dtype": "bfloat16"}, {"model__autocast": "true"}])
def test_full_training_exports_the_live_weights(changes, tmp_path):
    trainer = Trainer(config(tmp_path, **changes), Console(quiet=True))
    exported = load_file(trainer.run() / "model.safetensors")
    for name, weight in trainer.learner.policy.causal_lm.named_parameters():
        assert torch.equal(exported[name], weight.detach())
    assert state(tmp_path)["update_error"] is None


@pytest.mark.parametrize(
    ("live", "dtype", "of_decay"),
    [(torch.float32, "bfloat16", torch.float32), (torch.bfloat16, "float32", torch.float32),
     (torch.bfloat16, "bfloat16", torch.bfloat16)],
)  # fmt: skip
@pytest.mark.parametrize("family", CARRYING)
def test_the_rates_of_a_decay_are_never_rounded(family, live, dtype, of_decay, tmp_path):
    """A state of linear attention would be another one."""
    tokenizer = make_tokenizer(list("abc"))
    model = make_causal_lm(family).to(live)
    Exporter(tokenizer, dtype).write(model, tmp_path)
    exported = load_file(tmp_path / "model.safetensors")
    types = {name.endswith(".A_log"): one.dtype for name, one in exported.items()}
    assert types == {True: of_decay, False: getattr(torch, dtype)}


def test_a_loss_without_an_update_is_none():
    loss = RoundingLoss()
    assert loss.relative == 0
    weight = torch.full((2, 2), 0.3)
    loss.add(weight, torch.zeros(2, 2), weight.bfloat16())
    assert loss.relative == 0  # rounding that takes nothing of what was learned, since nothing was


def test_a_merge_is_rounded_once_and_its_loss_is_that_of_the_rounding():
    from fastflow.config.schema import LoraConfig
    from fastflow.models.opening import with_adapters
    from small_models import make_causal_lm

    model = PackedModel(with_adapters(make_causal_lm().bfloat16(), LoraConfig(rank=2))).causal_lm
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.01)
    loss = RoundingLoss()
    _, layer = next(adapted_layers(model))
    merged = merged_weight(layer, torch.bfloat16, loss)
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    assert torch.equal(merged, exact.bfloat16())
    delta = layer.get_delta_weight("default").double()
    assert loss.relative == pytest.approx(float((merged.double() - exact).norm() / delta.norm()), rel=1e-4)
