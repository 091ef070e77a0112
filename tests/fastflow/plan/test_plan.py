"""`fastflow plan`: its verdict, its remedies, its device, and the peak of real updates."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from command_line import invoke
from fastflow.config.reader import read_config
from fastflow.machine import ram
from fastflow.models.weights.loading import FAMILIES
from fastflow.plan.activations import Numbers, count_saved
from fastflow.plan.command import read_arguments
from fastflow.plan.device import GIB, Device, find_device
from fastflow.plan.estimate import estimate
from fastflow.plan.remedies import changed, combination, remedies
from fastflow.plan.rows import LOSS, PHASES
from fastflow.plan.sizes import read_sizes
from plans import CPU, GPU, LARGE, configure, rows_of
from small_models import make_causal_lm


class TestRemedies:
    @pytest.mark.parametrize("device_type", ["cpu", "cuda"])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"rollout__engine": "vllm"},
            {"rollout__engine": "vllm", "rollout__sleep": "off"},
            {"rollout__engine": "vllm", "rollout__ahead": 1},
            {"lora__rank": 4},
        ],
        ids=str,
    )
    def test_each_saves_what_it_says(self, models, changes, device_type):
        config = configure(models / "large", **changes)
        device = Device(device_type, int(1.4 * GIB), "a test")
        before = estimate(config, device)
        assert not before.fits
        found = remedies(config, device, before)
        assert found
        for remedy in found:
            after = estimate(changed(config, remedy.setting, remedy.value), device)
            assert after.fits is remedy.fits
            for phase in PHASES:
                assert before.peak(phase)[1] - after.peak(phase)[1] == remedy.saves[phase]
        assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)

    def test_all_settings_that_can_help_are_tried(self, models):
        config = configure(models / "large", rollout__engine="vllm", rollout__sleep="off")
        device = Device("cuda", GIB, "a test")
        settings = {one.setting for one in remedies(config, device, estimate(config, device))}
        assert settings >= {
            "batch.tokens_per_microbatch", "model.checkpoint_share", "model.autocast", "lora.rank",
            "rollout.sleep",
        }  # fmt: skip
        assert "model.residual_stream" not in settings  # which needs autocast
        config = changed(config, "model.autocast", True)
        assert "model.residual_stream" in {one.setting for one in remedies(config, device, estimate(config, device))}
        narrow = changed(changed(config, "model.residual_stream", "bfloat16"), "lora.rank", 2)
        assert not {"model.residual_stream", "model.dtype"} & {  # a narrower type would contradict it
            one.setting for one in remedies(narrow, device, estimate(narrow, device))
        }

    def test_several_together_where_none_is_enough(self, models):
        config, device = configure(models / "large"), Device("cpu", int(0.75 * GIB), "a test")
        before = estimate(config, device)
        assert not any(one.fits for one in remedies(config, device, before))
        chosen = combination(config, device, before)
        assert len(chosen) > 1 and len({one.setting for one in chosen}) == len(chosen)
        for remedy in chosen:
            config = changed(config, remedy.setting, remedy.value)
        assert estimate(config, device).fits is chosen[-1].fits is True


class TestDevice:
    def test_a_size_means_a_gpu_unless_the_cpu_is_asked_for(self, models):
        assert find_device(configure(models / "llama", model__device="auto").model, 24).type == "cuda"
        assert find_device(configure(models / "llama", model__device="cuda:1").model, 24).memory == 24 * GIB
        assert find_device(configure(models / "llama").model, 24).type == "cpu"

    def test_this_machine(self, models):
        found = find_device(configure(models / "llama").model, None)
        assert found.type == "cpu" and found.memory == ram() > 0

    def test_a_gpu_that_is_here(self, models, monkeypatch):
        properties = namedtuple("properties", "total_memory name")(80 * GIB, "a large GPU")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        found = find_device(configure(models / "llama", model__device="auto").model, None)
        assert (found.type, found.memory, found.origin) == ("cuda", 80 * GIB, "a large GPU")


class TestCommand:
    def test_it_fits(self, capsys, models, tmp_path):
        file = tmp_path / "new" / "plan.json"
        code, out, err = invoke(capsys, "plan", "--model.path", models / "large", "--memory", 80, "--json", file)
        assert (code, err) == (0, "")
        assert "fits: " in out and "An estimate from formulas" in out
        plan = json.loads(file.read_text())
        assert plan["fits"] and plan["remedies"] == plan["together"] == [] and plan["device"]["memory"] == 80 * GIB
        for phase, values in plan["phases"].items():
            rows = [row for row in plan["rows"] if values["moment"] in row["moments"]]
            assert values["bytes"] == sum(row["bytes"] for row in rows), phase

    @pytest.mark.parametrize(
        ("text", "gib"), [("79.5", 79.5), ("79.5GiB", 79.5), ("80GB", 80e9 / GIB), ("80 gb", 80e9 / GIB)]
    )
    def test_sizes_as_they_are_written(self, text, gib):
        assert read_arguments(["--model.path=x", f"--memory={text}"]).memory == pytest.approx(gib)

    def test_what_hardly_fits_is_said(self, capsys, models, monkeypatch):
        command = ("--model.path", models / "large", "--memory")
        _, out, _ = invoke(capsys, "plan", *command, 80)
        needed = float(re.search(r"fits: ([\d.]+) GiB", " ".join(out.split()))[1])
        code, out, _ = invoke(capsys, "plan", *command, 1.01 * needed)
        assert code == 0 and "fits barely" in out

    def test_updates_that_vanish_are_named(self, capsys, models):
        _, out, _ = invoke(
            capsys, "plan", "--model.path", models / "large", "--memory", 80, "--model.dtype", "bfloat16"
        )
        assert "vanish in bfloat16 parameters" in " ".join(out.split())

    def test_it_does_not_fit(self, capsys, models, tmp_path):
        file = tmp_path / "plan.json"
        code, out, err = invoke(
            capsys, "plan", "--model.path", models / "large", "--rollout.engine=vllm", "--memory=1.5", "--json", file
        )
        assert (code, err) == (1, "")
        plan = json.loads(file.read_text())
        assert "does not fit" in out and "more than 1.50 GiB (--memory)" in " ".join(out.split())
        assert plan["shortfall"] > 0 and plan["remedies"]
        assert all(f"--{remedy['setting']} " in out for remedy in plan["remedies"])

    def test_preset_and_file_are_read_as_by_train(self, capsys, models, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_text(f"model:\n  path: {models / 'large'}\n")
        json_file = tmp_path / "plan.json"
        arguments = ("--preset", "paper-creative", "--config", file, "--memory", 80, "--json", json_file)
        assert invoke(capsys, "plan", *arguments)[0] == 0
        names = [row["name"] for row in json.loads(json_file.read_text())["rows"]]
        assert "one layer, recomputed" in names  # the preset's checkpoint_share

    def test_help(self, capsys):
        code, out, _ = invoke(capsys, "plan", "--help")
        assert code == 0 and "--memory GIB" in out and "fastflow train --help" in out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ("model.path is not set",)),
            (["--model.path=/absent/model"], ("model directory /absent/model does not exist",)),
            (["--model.path={fine}", "--memory=0"], ("--memory is 0", "above 0")),
            (["--model.path={fine}", "--memory=nan"], ("--memory is nan",)),
            (["--model.path={fine}", "--memory=1e300"], ("--memory is 1e+300", "at most 1,000,000")),
            (["--model.path={fine}", "--memory=much"], ("--memory", "much", "80GB", "fastflow plan --help")),
            (["--model.path={fine}", "--dry-run"], ("--dry-run", "fastflow train")),
            (["--model.path={fine}", "--model.pth=x"], ("unknown option --model.pth", "model.path?")),
            (["--model.path={fine}", "--model.device=gpu", "--memory=4"], ("model.device = 'gpu'",)),
            (["--model.path={fine}", "--model.base={larger}"], ("different vocabularies",)),
            (["--model.path={fine}", "--model.device=cpu", "--model.attention=varlen"], ("model.attention",)),
            (["--model.path={fine}", "--lora.rank=2", "--lora.targets=nothing"], ("lora.targets",)),
            (["--model.path={fine}", "--json={fine}"], ("--json", "cannot be written")),
        ],
    )
    def test_user_errors(self, capsys, models, arguments, words):
        paths = {"fine": models / "llama", "larger": models / "larger"}
        code, out, err = invoke(capsys, "plan", *(argument.format(**paths) for argument in arguments))
        assert code == 2 and err.count("\n") == 1 and "Traceback" not in out + err
        for word in words:
            assert word in err

    def test_a_disk_that_is_full(self, capsys, models):
        code, _, err = invoke(capsys, "plan", f"--model.path={models / 'llama'}", "--memory=4", "--json=/dev/full")
        assert code == 2 and err.count("\n") == 1 and "cannot write to /dev/full" in err and "make room" in err

    def test_no_empty_file_is_left(self, capsys, tmp_path):
        file = tmp_path / "plan.json"
        assert invoke(capsys, "plan", "--model.path=/absent/model", "--json", file)[0] == 2
        assert not file.exists()
        file.write_text("kept")
        assert invoke(capsys, "plan", "--model.path=/absent/model", "--json", file)[0] == 2
        assert file.read_text() == "kept"

    def test_a_model_that_is_none_of_ours(self, capsys, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        code, _, err = invoke(capsys, "plan", "--model.path", tmp_path)
        assert code == 2 and "'gpt2'" in err and ", ".join(FAMILIES) in err
        (tmp_path / "config.json").write_text("{")
        code, _, err = invoke(capsys, "plan", "--model.path", tmp_path)
        assert code == 2 and "cannot load the model" in err


REAL_UPDATES = """
import sys
import numpy as np
import torch
from fastflow.config.reader import read_config
from fastflow.train.learner import Learner
from fastflow.models.opening import load_models
from fastflow.data.trajectory import Group, Prompt, Trajectory
from transformers import AutoModelForCausalLM, LlamaForCausalLM



def resident(name):  # getrusage would also count what the parent held when it started this process
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))


torch.set_num_threads(1)
config, _ = read_config(sys.argv[1:])
before = resident("VmRSS")
learner = Learner(*load_models(config.model, config.lora), config, total_updates=2)
rng = np.random.default_rng(0)
answers = tuple(Trajectory(rng.integers(1, 4000, 449), np.full(449, -9, np.float32), "length") for _ in range(4))
for _ in range(2):
    learner.update([Group(Prompt(rng.integers(1, 4000, 64)), answers)])
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="needs /proc and glibc")
@pytest.mark.parametrize("changes", [{}, {"lora.rank": 8}], ids=str)
def test_the_peak_of_real_updates(tmp_path, changes):
    """Where malloc returns what is freed; a model and tokens that are large beside the interpreter's own needs."""
    sizes = {**LARGE, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4}
    sizes["max_position_embeddings"] = 1024
    make_causal_lm("llama", tied=False, **sizes, initializer_range=0.02).save_pretrained(tmp_path)
    arguments = [
        f"--model.path={tmp_path}", "--model.device=cpu", "--data.max_prompt_tokens=64",
        "--rollout.max_response_tokens=449", "--batch.prompts_per_step=1", "--batch.responses_per_prompt=4",
        "--batch.tokens_per_microbatch=4096", *(f"--{name}={value}" for name, value in changes.items()),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", REAL_UPDATES, *arguments], capture_output=True, text=True, timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = estimate(read_config(arguments)[0], CPU)
    own = next(row.bytes for row in result.rows if row.name == "Python and its libraries")
    assert int(done.stdout) == pytest.approx(result.peak("training")[1] - own, rel=0.15)


def test_a_block_of_logits_exists_in_the_loss_only(models):
    assert rows_of(configure(models / "large"), GPU)["trainer", "a block of logits"].moments == (LOSS,)


def test_outer_bytes_without_trained_norms_are_fewer(models):
    model = read_sizes(str(models / "llama"), configure(models / "llama").model)
    adapted, trained = (count_saved(model, Numbers(False, False, "sdpa", lora_rank=rank)).outer for rank in (1, 0))
    assert adapted < trained
