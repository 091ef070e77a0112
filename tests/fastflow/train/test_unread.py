"""Settings that nothing reads are told, each with its reason; presets and remedies have none."""

from __future__ import annotations

import re

import pytest

from fastflow.config.presets import PRESETS
from fastflow.config.reader import known_settings, read_config
from fastflow.config.schema import sections
from fastflow.train.doubtful import doubtful
from fastflow.train.unread import TABLE, unread

GREEDY = ["--eval.every=1", "--eval.tasks=aime24", "--eval.temperature=0", "--eval.samples=1"]
GRPO = ["--objective.name=grpo", "--objective.reward=answer"]
VLLM = ["--rollout.engine=vllm"]


def found(*arguments: str) -> list[str]:
    return unread(read_config(list(arguments))[0])


@pytest.mark.parametrize(
    ("given", "unread", "reason"),
    [
        (["--data.path=x.jsonl"], "data.subset=a", "data.path is a file"),
        (["--data.path=x.jsonl"], "data.split=test", "data.path is a file"),
        (["--data.path=gym:leg_counting"], "data.split=test", "reasoning-gym"),
        ([], "rollout.memory_fraction=0.5", "rollout.engine is not vllm"),
        ([], "rollout.sleep=off", "rollout.engine is not vllm"),
        ([], "rollout.servers=localhost:1", "rollout.engine is not vllm-server"),
        (VLLM, "rollout.shared_folder=x", "rollout.engine is not vllm-server"),
        (VLLM, "rollout.adapters=apply", "lora.rank = 0"),
        ([], "lora.alpha=64", "lora.rank = 0"),
        ([], "lora.targets=q_proj", "lora.rank = 0"),
        (GRPO, "objective.alpha=2", "objective.name = grpo heads for no power of the base"),
        (GRPO, "objective.log_z=group_mean", "objective.name = grpo has no log_z"),
        ([*GRPO, "--objective.format_pattern=x"], "objective.format_penalty=-1", "counts malformed responses alone"),
        ([], "objective.format_penalty=-1", "neither objective.format_pattern nor objective.format_check"),
        ([], "objective.grader=exact", "compares no answers"),
        ([*GRPO, "--data.path=gym:leg_counting"], "objective.grader=exact", "a verifier of their own"),
        (["--objective.name=empo"], "objective.answer_field=gold", "objective.reward is not answer"),
        (
            ["--objective.name=flowrl", "--objective.reward=answer", "--objective.flowrl_form=release"],
            "importance.clip_low=0.1",
            "objective.flowrl_form",
        ),
        (GRPO, "surrogate.kl_estimator=k2", "surrogate.kl = 0"),
        (["--objective.name=rl_token"], "surrogate.divide_by_std=false", "never divides"),
        (GRPO, "optim.log_z_lr=1", "no log_z is learned"),
        (["--objective.log_z=group_mean"], "optim.log_z_lr=1", "no log_z is learned"),
        ([], "optim.final_lr_ratio=0.5", "optim.schedule = constant"),
        ([], "run.best_is=lowest", "run.best_metric is not set"),
        (["--run.samples_every=0"], "run.samples_per_dump=3", "run.samples_every = 0"),
        ([], "eval.samples=8", "eval.every = 0"),
        ([], "eval.tasks=aime24", "eval.every = 0"),
        (["--eval.every=1", "--eval.tasks=aime24"], "eval.grader=exact", "eval.tasks names no file of your own"),
        (GREEDY, "eval.top_p=0.9", "eval.temperature = 0 takes the likeliest token"),
        (GREEDY, "eval.top_k=20", "eval.temperature = 0 takes the likeliest token"),
        (GREEDY, "eval.min_p=0.1", "eval.temperature = 0 takes the likeliest token"),
        (["--data.path=program:own.py"], "data.split=test", "a Python program has the prompts"),
    ],
)
def test_what_nothing_reads(given, unread, reason):
    assert found(*given) == []
    (message,) = found(*given, f"--{unread}")
    name, value = unread.split("=")
    assert message.startswith(f"{name} = {value} is not read, since ") and reason in message


@pytest.mark.parametrize(
    "given",
    [
        ["--data.path=owner/set", "--data.split=test", "--data.subset=a"],
        [*VLLM, "--rollout.memory_fraction=0.5", "--rollout.sleep=off", "--lora.rank=4", "--rollout.adapters=apply"],
        ["--rollout.engine=vllm-server", "--rollout.servers=localhost:1", "--rollout.shared_folder=x"],
        ["--lora.rank=4", "--lora.alpha=64", "--optim.log_z_lr=0.1", "--objective.alpha=2"],
        ["--objective.format_pattern=x", "--objective.format_penalty=-1"],
        ["--objective.name=rl_token", "--objective.format_check=a:b", "--objective.format_penalty=-1"],
        [*GRPO, "--objective.grader=exact", "--surrogate.kl=0.1", "--surrogate.kl_estimator=k2"],
        ["--optim.schedule=cosine", "--optim.final_lr_ratio=0.1"],
        ["--run.best_metric=eval/aime24/tokens", "--run.best_is=lowest", "--eval.every=1", "--eval.tasks=aime24"],
        ["--eval.every=1", "--eval.tasks=aime24", "--eval.samples=8"],
        ["--eval.every=1", "--eval.tasks=aime24,own.jsonl", "--eval.grader=exact"],
    ],
)
def test_what_is_read(given):
    assert found(*given) == []


def test_settings_of_one_reason_are_one_sentence():
    assert found("--lora.alpha=64", "--lora.dropout=0.1") == [
        "lora.alpha = 64 and lora.dropout = 0.1 are not read, since lora.rank = 0 trains no adapters"
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_quiet(name):
    assert found("--preset", name) == []


def test_the_table_names_what_exists():
    known = {*known_settings(), *sections()}
    for names, _, why in TABLE:
        assert set(names) <= known
        assert {name.rstrip(".") for name in re.findall(r"\b[a-z]+\.[a-z_]+", why)} <= known


@pytest.mark.parametrize(
    ("steps", "updates", "warmup", "warned"),
    [(2, 1, 50, True), (2, 1, 2, True), (3, 1, 2, False), (2, 2, 3, False), (1, 1, 1, False), (1, 1, 2, True)],
)
def test_a_warm_up_that_takes_the_whole_run(steps, updates, warmup, warned):
    given = [f"--run.steps={steps}", f"--batch.updates_per_rollout={updates}", "--batch.prompts_per_step=4"]
    config, _ = read_config([*given, f"--optim.warmup_updates={warmup}", "--objective.alpha=0.5"])
    assert [message.split(" takes")[0] for message in doubtful(config)] == (
        [f"optim.warmup_updates = {warmup}"] if warned else []
    )
