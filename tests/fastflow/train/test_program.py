"""Runs of a Python program: prompts and functions in its memory, its callback, its trained model."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from rich.console import Console

from cli_runs import settings
from fastflow.errors import FastflowError
from fastflow.train.program import Trained, configure, fine_tune
from resumed_runs import check_same
from small_models import save_model

QUIET = Console(quiet=True)
PROMPTS = [{"prompt": f"ab{number}", "letter": "a"} for number in range(10)]


def share(text, record):
    return text.count(record["letter"]) / max(len(text), 1)


def share_of_a_and_more(text, record):
    return 1 + share(text, record)


def own_settings(home, **changes):
    own = {"data.path": PROMPTS, "objective.name": "grpo", "objective.reward": share}
    given = {name: value for name, value in settings(home).items() if name != "objective.alpha"}
    return given | own | {name.replace("__", "."): value for name, value in changes.items()}


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def policy_of(run) -> bytes:
    return (run / "policy" / "model.safetensors").read_bytes()


def test_prompts_and_functions_in_memory_are_those_of_files(tmp_path, monkeypatch):
    seen = []
    fine_tune(own_settings(tmp_path), on_step=seen.append, console=QUIET)
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    named = {"data__path": tmp_path / "named.jsonl", "objective__reward": f"{__name__}:share"}
    fine_tune(own_settings(tmp_path, run__output=tmp_path / "named", **named), console=QUIET)
    assert policy_of(tmp_path / "run") == policy_of(tmp_path / "named")
    assert [step["step"] for step in seen] == [1, 2, 3]
    written = metrics_of(tmp_path / "run")
    assert [step["reward_mean"] for step in seen] == [step["reward_mean"] for step in written]
    assert any(step["reward_mean"] for step in seen)


@pytest.mark.parametrize("form", [str, lambda text: {"prompt": text}])
def test_forms_of_a_prompt(tmp_path, form):
    prompts = [form(record["prompt"]) for record in PROMPTS]
    config, program = configure(own_settings(tmp_path, data__path=prompts))
    from fastflow.data import read_records

    records = read_records(config.data, program)
    assert [record["prompt"] for _, record in records] == [record["prompt"] for record in PROMPTS]
    assert records[3][0] == "prompts[3]"


def test_chat_messages(tmp_path):
    from fastflow.data import read_records

    messages = [{"role": "user", "content": "hi"}]
    asked = [messages, {"prompt": messages, "role": "any"}]
    config, program = configure(own_settings(tmp_path, data__path=asked, data__chat_template=True))
    assert [record["prompt"] for _, record in read_records(config.data, program)] == [messages, messages]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (3, r"prompts\[1\] is a int, but must be a text, a list"),
        ({"role": "user", "content": "hi"}, r"prompts\[1\] is a dict.*put the message into a list"),
        ({"other": "x"}, r"prompts\[1\]: no field 'prompt'"),
        (
            {"prompt": "a", "image": object()},
            r"prompts\[1\]: field 'image' holds what no save could compare \(a object",
        ),
        ({"prompt": "a", "tags": {"x", "y"}}, r"field 'tags' holds what no save could compare \(a set"),
        ({"prompt": "a", "check": len}, r"field 'check' holds what no save could compare \(a builtin_function"),
        ({"prompt": "a", "mixed": {"x": 1, 2: "y"}}, r"field 'mixed' holds what no save could compare"),
        ({"prompt": "a", 1: "b"}, r"prompts\[1\] has the key 1"),
        ({"prompt": "\ud800"}, r"prompts\[1\]: .*lone surrogate"),
        ("", r"prompts\[1\]: the prompt is empty"),
    ],
)
def test_prompts_that_are_none(tmp_path, prompt, words):
    with pytest.raises(FastflowError, match=words):
        fine_tune(own_settings(tmp_path, data__path=["a", prompt]), console=QUIET)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__lr": "fast"}, r"optim\.lr"),
        ({"run__steps": "ten"}, r"run\.steps"),
        ({"optim__rate": 1}, r"unknown setting optim\.rate: did you mean"),
        ({"resume": "auto"}, "unknown setting resume"),
        ({"model__path": torch.nn.Linear(1, 1)}, r"model\.path is a Linear; give the path of its directory"),
        ({"model__dtype": torch.bfloat16}, r"model\.dtype is a dtype, .*what the command line takes"),
        ({"run__wandb": False}, r"run\.wandb is a bool; give a text"),
        ({"lora__targets": ["q_proj"]}, r"lora\.targets is a list; give names with commas"),
        ({"preset": ["demo"]}, r"preset is a list; give a text"),
        ({"data__path": None}, r"data\.path is None, but has no such value; leave it out"),
        ({"config": None}, "config is None"),
        ({"data__path": np.zeros(3)}, r"data\.path is a ndarray; give a list of prompts"),
        ({"objective__reward": lambda text: 1.0}, r"takes \(text\), but is called with \(text, record\)"),
        ({"objective__name": "powerflow", "data__path": []}, "holds no records"),
    ],
)
def test_settings_that_are_none(tmp_path, changes, words):
    with pytest.raises(FastflowError, match=words):
        fine_tune(own_settings(tmp_path, **changes), console=QUIET)


def test_values_as_python_holds_them(tmp_path):
    own = {"eval__every": 1, "eval__tasks": [tmp_path / "a.jsonl"], "optim__betas": (0.5, 0.75), "data__limit": 2}
    config, _ = configure(own_settings(tmp_path, **own, eval__reward=None, rollout__stop=["a,b"]))
    assert config.eval.tasks == (str(tmp_path / "a.jsonl"),)
    assert (config.optim.betas, config.eval.reward, config.rollout.stop) == ((0.5, 0.75), None, ("a,b",))


def test_characters_of_every_kind(tmp_path):
    own = {"rollout__stop": ["\U0001f600", "é"], "data__template_arguments": {"x": "\U0001f600"}}
    own["data__chat_template"] = True
    config, _ = configure(own_settings(tmp_path, **own))
    assert config.rollout.stop == ("\U0001f600", "é") and config.data.template_arguments == {"x": "\U0001f600"}


def test_a_run_is_not_removed_and_gone_on_with(tmp_path):
    with pytest.raises(FastflowError, match=r"resume = auto goes on with a run, and run\.overwrite removes it"):
        fine_tune(own_settings(tmp_path, run__overwrite=True), resume="auto", console=QUIET)


def test_a_program_is_told_what_the_files_hold(tmp_path):
    seen = []
    changes = {"objective__name": "random_reward", "objective__reward": None, "surrogate__score_base": False}
    fine_tune(own_settings(tmp_path, **changes), on_step=seen.append, console=QUIET)
    assert seen == metrics_of(tmp_path / "run") and seen[0]["slope"] is None


def test_a_word_for_resume_is_one_of_three(tmp_path):
    with pytest.raises(FastflowError, match="resume is True: known are auto, no, yes"):
        fine_tune(own_settings(tmp_path), resume=True, console=QUIET)


def draw_at_random(metrics) -> None:
    torch.rand(3), np.random.rand(3), random.random()


class Enough(Exception):
    """What a program may raise to end its run."""


def test_a_run_that_its_program_ended_goes_on_to_the_bit(tmp_path):
    """Whatever the callback draws at random."""

    def stop(metrics):
        draw_at_random(metrics)
        if metrics["step"] == 2:
            raise Enough

    fine_tune(own_settings(tmp_path, run__output=tmp_path / "whole"), console=QUIET)
    with pytest.raises(Enough):
        fine_tune(own_settings(tmp_path, run__output=tmp_path / "cut"), on_step=stop, console=QUIET)
    assert [step["step"] for step in metrics_of(tmp_path / "cut")] == [1, 2]
    again = own_settings(tmp_path, run__output=tmp_path / "cut")
    fine_tune(again, on_step=draw_at_random, resume="yes", console=QUIET)
    check_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__path": PROMPTS[:-1]}, "prompts"),
        ({"data__path": [record | {"letter": "b"} for record in PROMPTS]}, "prompts"),
        ({"objective__reward": share_of_a_and_more}, r"cannot change objective\.reward = .*share_of_a_and_more"),
    ],
)
def test_another_programs_run_is_not_gone_on_with(tmp_path, changes, words):
    fine_tune(own_settings(tmp_path), console=QUIET)
    with pytest.raises(FastflowError, match=words):
        fine_tune(own_settings(tmp_path, run__steps=4, **changes), resume="yes", console=QUIET)


def test_a_failing_run_says_which_program_goes_on(tmp_path, monkeypatch):
    def broken(text, record):
        raise ValueError("boo")

    monkeypatch.setattr("fastflow.config.program.script", lambda: "own_run.py")
    monkeypatch.setattr("fastflow.train.ending.script", lambda: "own_run.py")
    with pytest.raises(FastflowError, match=r'boo.*; to go on: own_run\.py again, with resume="yes"'):
        fine_tune(own_settings(tmp_path, objective__reward=broken), console=QUIET)


@pytest.mark.parametrize("named", ["data.path", "objective.reward"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_the_command_does_not_go_on_with_it(tmp_path, monkeypatch, capsys, named, more):
    from fastflow.cli import main

    monkeypatch.setattr("fastflow.config.program.script", lambda: "own_run.py")
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    names = {"data.path": tmp_path / "named.jsonl", "objective.reward": f"{__name__}:share"}
    del names[named]
    fine_tune(own_settings(tmp_path) | names, console=QUIET)
    assert main(["train", "--resume", str(tmp_path / "run"), *more]) == 2
    said = capsys.readouterr().err
    assert f"{named} = program:own_run.py" in said
    assert 'start own_run.py again, with resume="yes"' in said


def test_the_trained_model_generates(tmp_path):
    trained = fine_tune(own_settings(tmp_path, lora__rank=2), console=QUIET)
    assert trained == Trained(tmp_path / "run" / "policy")
    asked = trained.tokenizer("ab", return_tensors="pt")
    answered = trained.model.generate(**asked, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert answered.shape == (1, 6)
    assert not any("lora" in name for name, _ in trained.model.named_parameters())
    before = torch.cat([one.flatten() for one in trained.model.parameters()])
    save_model(tmp_path / "start")
    start = Trained(tmp_path / "start").model
    assert not torch.equal(before, torch.cat([one.flatten() for one in start.parameters()]))
