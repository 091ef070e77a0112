"""The real `fastflow train` path, end to end, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.train.announcement import describe, describe_body
from fastflow.train.state import UnderWay
from fastflow.train.trainer import Trainer
from fastflow_kernels import explain
from small_models import make_causal_lm
from small_runs import configure, metrics_of, run


def weights(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def test_a_run_leaves_everything_a_reader_needs(settings):
    policy = run(settings)
    directory = settings["run.output"]
    metrics = metrics_of(settings)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert line["responses"] == 12
        assert line["ratio_p50"] == pytest.approx(1, abs=1e-3)  # on-policy
        assert line["seconds"] >= line["seconds_sample"] + line["seconds_train"]
        assert line["length_p10"] <= line["length_p50"] <= line["length_max"] <= 6
        assert line["alpha"] == 2 and line["malformed_share"] is None
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1] * 4 + [2] * 4 + [3] * 4
    for sample in samples:
        assert len(sample["tokens"]) == len(sample["logprobs"]) == len(sample["base_logprobs"]) == sample["length"]
    assert "[prompt] ab" in (directory / "samples" / "step-000002.txt").read_text()
    assert read_config(["--config", str(directory / "config.yaml")])[0] == configure(settings)
    assert policy == directory / "policy"


def test_the_export_loads_in_transformers_and_is_the_policy(settings):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = Trainer(configure(settings), Console(quiet=True))
    exported = AutoModelForCausalLM.from_pretrained(trainer.run())
    tokenizer = AutoTokenizer.from_pretrained(settings["run.output"] / "policy")
    ids = torch.tensor([tokenizer("abc123")["input_ids"]])
    with torch.no_grad(), trainer.learner.policy.decoding() as trained:
        torch.testing.assert_close(exported(ids).logits, trained(ids).logits)
    assert "fastflow" not in (settings["run.output"] / "policy" / "config.json").read_text()


def test_training_changes_the_policy_and_not_the_base(settings):
    trainer = Trainer(configure(settings), Console(quiet=True))
    start = {name: tensor.clone() for name, tensor in trainer.learner.base.model.state_dict().items()}
    trained = weights(trainer.run())
    for name, tensor in trainer.learner.base.model.state_dict().items():
        assert torch.equal(tensor, start[name])
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.items())


def test_the_seed_fixes_the_run(settings, tmp_path):
    first = weights(run(settings))
    again = weights(run(settings, run__output=tmp_path / "again"))
    other = weights(run(settings, run__output=tmp_path / "other", run__seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_several_updates_per_rollout_are_weighed(settings):
    run(settings, batch__updates_per_rollout=2, optim__lr=1e-2)
    line = metrics_of(settings)[0]
    assert line["microbatches"] >= 2
    assert line["ratio_p99"] > 1.001  # the second update is off-policy
    assert line["effective_sample_size"] < 1


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__log_z": "group_mean"},
        {"objective__name": "tb_trajectory"},
        {"objective__name": "tb_token", "importance__ratio": "token_mean"},
        {"objective__truncated": "drop", "rollout__max_response_tokens": 30},
        {"rollout__temperature": 0.7, "rollout__top_p": 0.9, "importance__source": "recompute"},
        {"lora__rank": 2, "importance__source": "recompute"},
        {"objective__format_pattern": "[0-9]", "run__tensorboard": "true"},
        {"model__checkpoint_share": 0.5, "optim__schedule": "cosine", "optim__warmup_updates": 1},
    ],
)
def test_every_switch_trains(settings, changes):
    run(settings, **changes)
    lines = metrics_of(settings)
    assert len(lines) == 3
    assert all(line["loss"] is not None and line["grad_norm"] > 0 for line in lines)


def test_flowrl_takes_the_users_reward(settings, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def count_a(text, record):\n    return float(text.count('a'))\n")
    monkeypatch.syspath_prepend(tmp_path)
    run(settings, objective__name="flowrl", objective__reward="rewards:count_a")
    assert metrics_of(settings)[0]["residual_std"] > 1  # beta = 15 times a normalised reward
    samples = [json.loads(line) for line in (settings["run.output"] / "samples.jsonl").read_text().splitlines()]
    assert samples and all(sample["reward"] == sample["response"].count("a") for sample in samples)


@pytest.mark.parametrize("returned", ["None", "float('nan')", "10**400"])
def test_a_reward_must_be_a_finite_number(settings, tmp_path, monkeypatch, returned):
    module = f"bad_reward_{len(returned)}"
    (tmp_path / f"{module}.py").write_text(f"def score(text, record):\n    return {returned}\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = r"objective\.reward = .*, a response to .*prompts\.jsonl:\d; it must return a finite number"
    with pytest.raises(FastflowError, match=words):
        run(settings, objective__name="flowrl", objective__reward=f"{module}:score")


def test_a_run_that_wandb_refuses_leaves_its_place_free(settings, monkeypatch):
    """Also where it writes a log of its own there before it refuses."""

    def refuse(**options):
        (settings["run.output"] / "wandb").mkdir()
        raise ConnectionError("no network")

    wandb = types.SimpleNamespace(init=refuse, login=lambda prompt: True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(FastflowError, match="Weights & Biases refuses"):
        run(settings, run__wandb="p")
    wandb.login = lambda prompt: False
    with pytest.raises(FastflowError, match="nobody is logged in"):
        run(settings, run__wandb="p")
    run(settings)


def test_the_time_of_a_reward_is_a_phase(settings, tmp_path, monkeypatch):
    source = "import time\ndef score(text, record):\n    time.sleep(0.01)\n    return 1.0\n"
    (tmp_path / "slow_reward.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    run(settings, objective__name="flowrl", objective__reward="slow_reward:score", batch__updates_per_rollout=2)
    for line in metrics_of(settings):
        assert line["seconds_reward"] >= 12 * 0.01
        assert line["seconds"] >= line["seconds_sample"] + line["seconds_reward"] + line["seconds_train"]


@pytest.mark.parametrize("name", ["objective.reward", "objective.format_check"])
def test_a_function_of_the_user_that_raises(settings, tmp_path, monkeypatch, name):
    """The run is saved, and the message names setting, exception, line, response and record."""
    module = f"raising_{name[-5:]}"
    source = "def score(text, record):\n    raise ValueError('boo')\n\ndef fine(text, record):\n    return 1.0\n"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    named = {"objective.reward": f"{module}:fine", name: f"{module}:score"}
    with pytest.raises(FastflowError) as stopped:
        run(settings, objective__name="flowrl", **{key.replace(".", "__"): value for key, value in named.items()})
    assert f"{name} = {module}:score raises ValueError: boo (" in str(stopped.value)
    for words in (
        f"{module}.py:2) for '",
        "', a response to ",
        "prompts.jsonl:",
        "mend the function; ",
        "; to go on: fastflow train --resume ",
    ):
        assert words in str(stopped.value)


def test_a_function_of_the_user_with_other_parameters(settings, tmp_path, monkeypatch):
    (tmp_path / "one_parameter.py").write_text("def score(text):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FastflowError, match=r"takes \(text\), but is called with \(text, record\)"):
        run(settings, objective__name="flowrl", objective__reward="one_parameter:score")
    assert not (settings["run.output"] / "config.yaml").exists()


def test_recomputed_behaviour_is_the_policy_at_temperature_one(settings):
    trainer = Trainer(
        configure(settings, rollout__temperature=0.5, importance__source="recompute"), Console(quiet=True)
    )
    (update,) = trainer.updates.carry_out(UnderWay(trainer.sample(1), 0))
    torch.testing.assert_close(update.result.raw_ratio, torch.ones(12, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_distances_are_told_only_of_tokens_that_the_policy_drew(settings, temperature):
    run(settings, rollout__temperature=temperature, importance__source="recompute", run__steps=1)
    (line,) = metrics_of(settings)
    assert {line["base_kl"] is None, line["mismatch_kl"] is None} == {temperature != 1.0}


@pytest.mark.parametrize("pattern", [".", "no response has this"])
def test_the_slope_is_of_responses_without_a_penalty(settings, pattern):
    run(settings, objective__format_pattern=pattern, run__steps=1)
    (line,) = metrics_of(settings)
    assert (line["slope"] is None) == (line["malformed_share"] == 1) == (pattern != ".")


def test_lora_exports_merged_weights_and_adapters(settings):
    from transformers import AutoModelForCausalLM

    trainer = Trainer(configure(settings, lora__rank=2, optim__lr=1e-2), Console(quiet=True))
    exported = PackedModel(AutoModelForCausalLM.from_pretrained(trainer.run()))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), trainer.learner.policy.decoding() as trained, exported.decoding() as merged:
        torch.testing.assert_close(merged(ids).logits, trained(ids).logits, rtol=1e-4, atol=1e-4)
    assert (settings["run.output"] / "adapter" / "adapter_model.safetensors").exists()


def test_trainer_state_is_beside_the_policy(settings):
    from safetensors.torch import load_file

    run(settings, run__save_every=2)
    trainer = settings["run.output"] / "checkpoints" / "step-3" / "trainer"
    (file,) = (trainer / "tensors").glob("*.safetensors")
    tensors = load_file(file)
    assert tensors["log_z/calibrated"]
    moments = [name for name in tensors if name.startswith("moments/")]
    assert {name.rpartition("/")[2] for name in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert "moments/policy/model.embed_tokens.weight/exp_avg" in moments
    assert not [name for name in tensors if name.startswith("weights/")]  # policy/ has them to the bit
    saved = state_of(settings["run.output"])
    assert saved["step"] == 3 and saved["updates"] == 3
    assert saved["prompts"] == {"epoch": 1, "position": 2}  # 12 of 10 prompts taken


def state_of(run):
    return json.loads(((run / "policy").resolve().parent / "trainer" / "state.json").read_text())


def test_nan_saves_the_last_good_policy(settings, monkeypatch):
    trainer = Trainer(configure(settings, optim__max_skips=0), Console(quiet=True))
    update = trainer.learner.update

    def poisoned(groups, *, penalty, **options):
        if trainer.learner.schedule.last_epoch == 2:
            penalty = penalty + float("nan")
        return update(groups, penalty=penalty, **options)

    monkeypatch.setattr(trainer.learner, "update", poisoned)
    message = r"the penalty of 12 of 12 responses is not finite.*the policy after step 2 \(2 updates\) is in"
    with pytest.raises(FastflowError, match=message):
        trainer.run()
    assert len(metrics_of(settings)) == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(settings["run.output"] / "policy").values())


def test_any_other_failure_saves_the_policy_too(settings, monkeypatch, capsys):
    trainer = Trainer(configure(settings), Console())
    step = trainer.step
    monkeypatch.setattr(trainer, "step", lambda n: step(n) if n < 3 else [].pop())
    with pytest.raises(IndexError):
        trainer.run()
    assert "the policy after step 2 (2 updates) is in" in " ".join(capsys.readouterr().out.split())
    assert state_of(settings["run.output"])["updates"] == 2


def test_damaged_weights_are_not_saved_over_good_ones(settings, monkeypatch):
    trainer = Trainer(configure(settings, run__save_every=1), Console(quiet=True))
    step = trainer.step

    def damage(number):
        if number == 3:
            with torch.no_grad():
                trainer.learner.policy.parameters()[0].fill_(float("inf"))
        return step(number)

    monkeypatch.setattr(trainer, "step", damage)
    with pytest.raises(FastflowError, match=r"NaN or infinite.*not saved over an earlier save"):
        trainer.run()
    assert all(torch.isfinite(tensor).all() for tensor in weights(settings["run.output"] / "policy").values())


def test_prompts_that_leave_no_room_are_found_at_the_start(settings):
    with pytest.raises(FastflowError, match=r"exceeds the model's context of 128"):
        Trainer(configure(settings, rollout__max_response_tokens=127), Console(quiet=True))


def test_an_interrupt_saves_the_policy(settings, monkeypatch):
    trainer = Trainer(configure(settings), Console(quiet=True))
    step = trainer.step
    monkeypatch.setattr(trainer, "step", lambda n: step(n) if n < 3 else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(FastflowError, match=r"interrupted; the policy after step 2 \(2 updates\) is in"):
        trainer.run()
    assert state_of(settings["run.output"])["step"] == 2


def test_the_announcement_names_what_computes_the_loss(settings):
    announcement = describe(Trainer(configure(settings), Console(quiet=True)))
    kernels = explain(torch.zeros(1, 1), torch.zeros(1, 1))
    assert kernels.startswith(("native: compiled sweeps", "torch: "))
    assert f"attention sdpa\nlayers plain, base in float32\nkernels {kernels}\n" in announcement


def test_the_announcement_names_what_ends_a_response(settings):
    """As it was understood: --rollout.stop "[END]" is a list."""
    given = configure(settings, rollout__stop='["[END]", x]')
    assert "responses end at '[END]' or 'x', or at the end token" in describe(Trainer(given, Console(quiet=True)))
    assert "responses end" not in describe(Trainer(configure(settings), Console(quiet=True)))


def test_the_announcement_names_the_switches_of_the_released_code(settings):
    plain, switched = (
        describe(Trainer(configure(settings, **changes), Console(quiet=True)))
        for changes in ({}, {"released__token_mask": "true", "released__log_z_dropout": 0.1})
    )
    assert "as released" not in plain
    assert "(log_z learned; as released: token_mask, log_z_dropout) on " in switched


def test_the_announcement_names_what_the_layers_do(settings, tmp_path):
    make_causal_lm(tied=False).bfloat16().save_pretrained(tmp_path / "base")
    changes = {"model__checkpoint_share": 0.5, "model__autocast": "true"}
    full = Trainer(configure(settings, model__base=tmp_path / "base", **changes), Console(quiet=True))
    found = describe_body(full)
    assert found == "layers plain, 1 of 2 recomputed in the backward pass, 99% of the base in bfloat16"
    narrow = {**changes, "model__residual_stream": "bfloat16"}
    adapters = Trainer(configure(settings, lora__rank=2, **narrow), Console(quiet=True))
    expected = "layers plain, 1 of 2 recomputed in the backward pass, residual stream in bfloat16"
    assert describe_body(adapters) == expected


def test_an_earlier_run_is_never_overwritten_unasked(settings):
    run(settings)
    with pytest.raises(FastflowError, match="already holds a run"):
        run(settings)
    run(settings, run__overwrite="true", run__steps=1)
    assert len(metrics_of(settings)) == 1


def test_a_run_never_replaces_its_own_model(settings):
    policy = run(settings)
    with pytest.raises(FastflowError, match=r"model\.path = .* lies in run\.output"):
        run(settings, model__path=policy, run__overwrite="true")
    assert (policy / "model.safetensors").exists()


def test_a_directory_of_other_things_is_left_alone(settings, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(FastflowError, match="not empty and not a run"):
        run(settings, run__output=tmp_path / "thesis", run__overwrite="true")
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


@pytest.mark.parametrize("failing", ["fastflow.run.directory.prepare", "fastflow.train.trainer.make_recorder"])
def test_the_sampler_is_closed_whatever_fails_first(failing, settings, monkeypatch):
    def fail(*arguments, **options):
        raise FastflowError("no room")

    trainer, closed = Trainer(configure(settings), Console(quiet=True)), []
    monkeypatch.setattr(failing, fail)
    monkeypatch.setattr(trainer.sampler, "close", lambda: closed.append(True))
    with pytest.raises(FastflowError, match="no room"):
        trainer.run()
    assert closed == [True]
