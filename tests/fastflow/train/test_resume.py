"""A run that was killed and resumed is the run that never stopped, to the bit: weights, moments, metrics, samples."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from fastflow.config.reader import read_config
from fastflow.config.resume import read_request
from fastflow.errors import FastflowError
from fastflow.interrupt import RunStopped
from fastflow.run.manifest import write_manifest
from fastflow.train.saves.checkpoint import stage
from fastflow.train.saves.restore import NEEDED, read
from fastflow.train.trainer import Trainer
from resumed_runs import (
    check_same,
    configure,
    metrics_of,
    newest_save,
    overlapping,
    run_to_the_end,
    run_until_killed,
    run_until_stopped,
    saves_in,
    tensors_of,
)
from small_models import save_model

KINDS = {
    "learned log_z": {},
    "group mean": {"objective__log_z": "group_mean"},
    "lora": {"lora__rank": 2, "lora__dropout": 0.3},
    "several updates": {"batch__updates_per_rollout": 2, "optim__lr": 1e-2},
    "a course of the learning rate": {"optim__schedule": "cosine", "optim__warmup_updates": 2},
    "a decay of the weights": {"optim__weight_decay": 0.1, "optim__lr": 1e-2},
    "recomputed": {"importance__source": "recompute", "rollout__temperature": 0.8},
    "an export that rounds": {"run__export_dtype": "bfloat16"},
    "bfloat16": {"model__dtype": "bfloat16", "lora__rank": 2},
    "a bfloat16 residual stream": {"model__autocast": "true", "model__residual_stream": "bfloat16"},
    "released": {
        "released__token_mask": "true",
        "released__log_z_offset": 0.36,
        "released__log_z_dropout": 0.1,
        "released__log_z_rate": "policy",
        "released__log_z_prompt": "without_last",
        "batch__updates_per_rollout": 2,
        "optim__lr": 1e-2,
    },
    "dropped": {"objective__truncated": "drop", "rollout__max_response_tokens": 30},
}
COMMON = {"run__steps": 6, "run__save_every": 2, "run__samples_every": 1}


@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_resumed_is_undisturbed(changes, tmp_path):
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **COMMON, **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **COMMON, **changes)
    run_until_killed(config, before=4)  # step 3 is done and not saved: it is done again
    assert len(metrics_of(tmp_path / "cut")) == 3
    cut = run_to_the_end(config, resume="yes")
    check_same(whole, cut)


def test_a_second_resume_of_a_resumed_run(tmp_path):
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **COMMON))
    config = configure(tmp_path, run__output=tmp_path / "cut", **COMMON)
    run_until_killed(config, before=4)
    run_until_killed(config, before=6, resume="auto")
    check_same(whole, run_to_the_end(config, resume="auto"))


@pytest.mark.slow
def test_more_than_an_epoch(tmp_path):
    """Ten prompts, four a step: step 3 ends the first epoch in its middle, step 5 the second at its end."""
    changes = {**COMMON, "run__steps": 8, "run__save_every": 1}
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
    run_until_killed(config, before=2)
    for before in range(3, 9):
        run_until_killed(config, before=before, resume="yes")
    check_same(whole, run_to_the_end(config, resume="yes"))
    assert saves_in(tmp_path / "cut") == ["step-7", "step-8"]


@pytest.mark.parametrize("updates", [4, 5, 6])
def test_a_stop_inside_a_step_resumes_at_the_very_update(updates, tmp_path):
    """Three updates a step: after the fourth, the second step has one of its three, and it is not done twice. After
    the sixth it lacks its metrics only.
    """
    changes = {**COMMON, "batch__prompts_per_step": 6, "batch__updates_per_rollout": 3, "run__steps": 4}
    changes |= {"lora__rank": 2, "lora__dropout": 0.3, "run__save_every": 0, "importance__source": "recompute"}
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
    config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
    message = run_until_stopped(config, after=updates)
    assert f"the policy after step 1 ({updates} updates) is in" in message
    check_same(whole, run_to_the_end(config, resume="yes"))
    assert saves_in(tmp_path / "cut") == [f"step-1-updates-{updates}", "step-4"]


def test_a_stop_between_the_last_update_and_the_metrics(tmp_path, monkeypatch):
    whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **COMMON))
    config = configure(tmp_path, run__output=tmp_path / "cut", **COMMON)
    with monkeypatch.context() as patched:
        trainer = Trainer(config, Console(quiet=True))
        dump = trainer.dump_samples

        def stopped(step, update):
            dump(step, update)
            if step == 3:
                raise KeyboardInterrupt

        patched.setattr(trainer, "dump_samples", stopped)
        with pytest.raises(RunStopped, match=r"step 2 \(3 updates\)"):
            trainer.run()
    check_same(whole, run_to_the_end(config, resume="yes"))


class TestAhead:
    """rollout.ahead = 1: what is sampled while a step trains comes from weights that are gone when it is needed."""

    @pytest.fixture
    def changes(self, monkeypatch):
        monkeypatch.setattr("fastflow.train.trainer.make_sampler", overlapping)
        return {**COMMON, "rollout__ahead": 1, "rollout__engine": "vllm", "optim__lr": 1e-2}

    @pytest.mark.slow
    @pytest.mark.parametrize("every", [1, 2])
    def test_killed_at_every_step(self, every, changes, tmp_path):
        changes |= {"run__save_every": every}
        whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
        for before in range(1 + every, 7):
            config = configure(tmp_path, run__output=tmp_path / f"cut-{before}", **changes)
            run_until_killed(config, before=before)
            check_same(whole, run_to_the_end(config, resume="yes"))
        assert {line["weight_lag"] for line in metrics_of(whole)} == {0, 1}

    def test_a_stop_saves_without_waiting_and_says_what_that_means(self, changes, tmp_path, caplog):
        config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
        run_until_stopped(config, after=3)
        cut = run_to_the_end(config, resume="yes")
        lags = [line["weight_lag"] for line in metrics_of(cut)]
        assert lags == [0, 1, 1, 0, 1, 1]  # step 4 was sampled again, from the weights that were saved
        assert "sampled again from the saved weights" in caplog.text


class TestWhatMayChange:
    @pytest.fixture
    def run(self, tmp_path):
        """A function that starts a run, and one that resumes it with other options."""
        config = configure(tmp_path, run__output=tmp_path / "run", **{**COMMON, "run__steps": 2})
        run_to_the_end(config)
        return tmp_path / "run"

    def resume(self, run, *options: str):
        request = read_request(["--resume", str(run), *options])
        return run_to_the_end(request.config, resume=request.resume)

    @pytest.mark.parametrize(
        "option",
        ["objective.alpha=3", "optim.lr=1e-4", "batch.prompts_per_step=5", "run.seed=7", "lora.rank=2",
         "rollout.top_p=0.9", "batch.updates_per_rollout=2", "optim.schedule=linear", "data.shuffle=false"],
    )  # fmt: skip
    def test_settings_that_make_another_run(self, option, run):
        name = option.partition("=")[0]
        more = ["--importance.source=recompute"] if name == "rollout.top_p" else []
        with pytest.raises(FastflowError, match=rf"cannot change .*{re.escape(name)} = .*\(was .*another run"):
            self.resume(run, f"--{option}", *more)

    def test_settings_that_do_not_are_named_and_taken(self, run, caplog):
        caplog.set_level("INFO")
        self.resume(run, "--run.steps=3", "--run.keep=1", "--batch.tokens_per_microbatch=30")
        assert [line["step"] for line in metrics_of(run)] == [1, 2, 3]
        assert (
            "settings that changed: batch.tokens_per_microbatch = 30 (was 16384), run.keep = 1 (was 2), " in caplog.text
        )
        assert "with another batch.tokens_per_microbatch the run goes on, but is no longer" in caplog.text
        assert read_config(["--config", str(run / "config.yaml")])[0].run.steps == 3
        assert saves_in(run) == ["step-3"]

    def test_more_prompts(self, run, tmp_path):
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write('{"prompt": "zz"}\n')
        with pytest.raises(FastflowError, match=r"data\.path = .* does not give the prompts"):
            self.resume(run, "--run.steps=3")

    def test_another_tokenizer_with_the_same_prompts(self, run, tmp_path):
        file = tmp_path / "model" / "tokenizer.json"
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
        file.write_text(json.dumps(content))
        with pytest.raises(FastflowError, match=r"the tokenizer of model\.path = .* is not that which"):
            self.resume(run, "--run.steps=3")

    def test_other_end_tokens(self, run, tmp_path):
        file = tmp_path / "model" / "generation_config.json"
        content = json.loads(file.read_text())
        content["eos_token_id"] = [content["eos_token_id"], 5]
        file.write_text(json.dumps(content))
        with pytest.raises(FastflowError, match="its end tokens differ"):
            self.resume(run, "--run.steps=3")

    def test_another_base(self, run, tmp_path):
        save_model(tmp_path / "model", seed=1)
        with pytest.raises(FastflowError, match=r"model\.path = .* does not hold the base's weights"):
            self.resume(run, "--run.steps=3")

    def test_the_same_files_elsewhere(self, run, tmp_path):
        (tmp_path / "model").rename(tmp_path / "moved")
        self.resume(run, "--run.steps=3", f"--model.path={tmp_path / 'moved'}")

    def test_fewer_steps_than_are_done(self, run):
        with pytest.raises(FastflowError, match=r"run\.steps = 1 \(was 2\) is less than the step 2"):
            self.resume(run, "--run.steps=1")

    def test_a_learning_rate_with_an_end_keeps_it(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "run", run__steps=2, optim__schedule="linear")
        run_to_the_end(config)
        with pytest.raises(FastflowError, match=r"optim\.schedule = linear spans the 2 updates"):
            self.resume(tmp_path / "run", "--run.steps=4")

    @pytest.mark.parametrize(
        "option", ["--config=x.yaml", "--preset=demo", "--run.output=other", "--run.overwrite=true"]
    )
    def test_options_that_contradict_it(self, option, run):
        with pytest.raises(FastflowError, match=f"{option.split('=')[0]} contradicts them"):
            self.resume(run, option)

    def test_no_run_there(self, tmp_path):
        with pytest.raises(FastflowError, match=r"no run of fastflow"):
            self.resume(tmp_path / "absent")
        with pytest.raises(FastflowError, match=r"--resume needs the directory"):
            read_request(["--resume"])

    def test_a_finished_run_is_left_as_it_is(self, run):
        before = tensors_of(newest_save(run)), (run / "metrics.jsonl").read_bytes()
        self.resume(run)
        after = tensors_of(newest_save(run))
        assert (after.keys(), (run / "metrics.jsonl").read_bytes()) == (before[0].keys(), before[1])

    def test_auto_starts_where_there_is_nothing(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "new", run__steps=1)
        run_to_the_end(config, resume="auto")
        assert len(metrics_of(tmp_path / "new")) == 1

    def test_auto_starts_anew_where_a_run_died_before_its_first_save(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "new", **{**COMMON, "run__save_every": 0})
        run_until_killed(config, before=3)
        with pytest.raises(FastflowError, match="has no save to go on from"):
            run_to_the_end(config, resume="yes")
        run_to_the_end(config, resume="auto")
        assert [line["step"] for line in metrics_of(tmp_path / "new")] == [*range(1, 7)]

    def test_a_run_of_an_earlier_fastflow(self, run):
        shutil.rmtree(run / "checkpoints")
        (run / "policy").unlink()
        (run / "policy").mkdir()
        for mode in ("yes", "auto"):
            with pytest.raises(FastflowError, match="holds a policy and no save to go on from"):
                run_to_the_end(read_request(["--resume", str(run)]).config, resume=mode)
        assert (run / "policy").is_dir()


class TestRecords:
    def test_lines_of_lost_steps_and_torn_ones_are_cut(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        run_until_killed(config, before=6)
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')
        run_to_the_end(config, resume="yes")
        assert [line["step"] for line in metrics_of(tmp_path / "run")] == [*range(1, 7)]

    def test_tensorboard_forgets_the_lost_steps(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = configure(tmp_path, run__output=tmp_path / "run", run__tensorboard="true", **COMMON)
        run_until_killed(config, before=6)
        run_to_the_end(config, resume="yes")
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [*range(1, 7)]

    def test_lost_records_are_a_warning(self, tmp_path, caplog):
        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        run_until_killed(config, before=4)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        (tmp_path / "run" / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
        run_to_the_end(config, resume="yes")
        assert "lines of it are lost" in caplog.text
        assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 3, 4, 5, 6]

    def test_an_alarm_compares_with_the_first_step_of_all(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        run_until_killed(config, before=4)
        trainer = Trainer(config, Console(quiet=True), resume="yes")
        first = metrics_of(tmp_path / "run")[0]
        assert trainer.alarms.state()["first"]["length_mean"] == first["length_mean"]
        trainer.close()


def test_a_save_that_says_too_little_is_refused(tmp_path):
    (tmp_path / "trainer").mkdir()
    state = dict.fromkeys(set(NEEDED) - {"prompts", "ranks"}, 1)
    (tmp_path / "trainer" / "state.json").write_text(json.dumps(state))
    with pytest.raises(FastflowError, match=r"says nothing about prompts, ranks in trainer/state\.json; another fastf"):
        read(tmp_path)


class TestTensorsByName:
    def test_a_missing_moment_is_named(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        run_to_the_end(config)
        save = newest_save(tmp_path / "run")
        (file,) = (save / "trainer" / "tensors").glob("*.safetensors")
        tensors = load_file(file)
        del tensors["moments/policy/model.norm.weight/exp_avg"]
        save_file(tensors, file)
        write_manifest(save, step=6, updates=6, metric=None)
        with pytest.raises(FastflowError, match=r"lacks moments/policy/model\.norm\.weight/exp_avg"):
            run_to_the_end(config, resume="yes")

    def test_an_optimiser_that_counts_otherwise_is_refused(self, tmp_path):
        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        run_to_the_end(config)
        save = newest_save(tmp_path / "run")
        (file,) = (save / "trainer" / "tensors").glob("*.safetensors")
        steps = {name: tensor - 1 if name.endswith("/step") else tensor for name, tensor in load_file(file).items()}
        save_file(steps, file)
        write_manifest(save, step=6, updates=6, metric=None)
        with pytest.raises(FastflowError, match=r"its optimiser counts 5 updates and its state 6"):
            run_to_the_end(config, resume="yes")

    def test_lora_targets_in_another_order(self, tmp_path):
        changes = {**COMMON, "lora__rank": 2, "lora__targets": "q_proj,v_proj"}
        whole = run_to_the_end(configure(tmp_path, run__output=tmp_path / "whole", **changes))
        config = configure(tmp_path, run__output=tmp_path / "cut", **changes)
        run_until_killed(config, before=4)
        check_same(whole, run_to_the_end(config, resume="yes"))
        other = configure(tmp_path, run__output=tmp_path / "cut", **{**changes, "lora__targets": "v_proj,q_proj"})
        with pytest.raises(FastflowError, match=r"lora\.targets"):
            run_to_the_end(other, resume="yes")

    def test_nothing_is_a_pickle(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("a pickle")

        config = configure(tmp_path, run__output=tmp_path / "run", **COMMON)
        for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)
        run_until_killed(config, before=4)
        run_to_the_end(config, resume="yes")
        endings = {file.suffix for file in (tmp_path / "run" / "checkpoints").rglob("*") if file.is_file()}
        assert endings == {".safetensors", ".json", ".yaml"}


def test_an_adapter_is_written_in_one_order(tmp_path):
    """peft keeps its targets in sets, whose order another process would not repeat."""
    program = (
        "import sys; from pathlib import Path; from fastflow.train.saves.checkpoint import save_adapter\n"
        "from fastflow.config.schema import LoraConfig; from fastflow.models.opening import with_adapters\n"
        "from small_models import make_causal_lm\n"
        "model = with_adapters(make_causal_lm(), LoraConfig(rank=2))\n"
        "save_adapter(model, Path(sys.argv[1]))\n"
        "print(list(model.peft_config['default'].target_modules))\n"
    )
    texts, orders = set(), set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        orders.add(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)
        texts.add((tmp_path / seed / "adapter_config.json").read_text())
    assert len(orders) == 2, "these seeds are to give the sets two orders"
    assert len(texts) == 1


@pytest.mark.parametrize(
    "changes", [{}, {"lora__rank": 8}, {"run__export_dtype": "bfloat16"}], ids=["full", "lora", "rounded"]
)
def test_a_save_holds_nothing_twice(changes, tmp_path):
    """At most 1.02 times the state and the exported policy."""
    save_model(tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64)
    trainer = Trainer(configure(tmp_path, run__steps=1, **changes), Console(quiet=True))
    save = newest_save(trainer.run().parent)
    staged = stage(trainer.learner, trainer.position.generators)
    exported = sum(file.stat().st_size for file in (save / "policy").glob("*.safetensors"))
    state = sum(tensor.nbytes for tensor in staged.others.values())
    if changes:  # else the exported policy is the weights
        state += sum(tensor.nbytes for tensor in staged.weights.values())
    written = sum(file.stat().st_size for file in save.rglob("*") if file.is_file())
    assert written <= 1.02 * (state + exported), (written, state, exported)
