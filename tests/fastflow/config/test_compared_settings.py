"""Settings of the compared methods: what contradicts them is refused, and the presets differ in the method alone."""

from __future__ import annotations

import typing

import pytest

from fastflow.config.methods import POLICY_GRADIENTS, Method
from fastflow.config.presets import METHODS, PRESETS
from fastflow.config.reader import read_config
from fastflow.train.doubtful import doubtful
from refusals import refusal

TBA = ["--objective.name=tba", "--objective.reward=answer"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--objective.name=grpo"], ("objective.reward = answer", "package.module:function")),
        (TBA, ("tba", "objective.log_z = group_mean")),
        (["--objective.name=empo", "--objective.reward=answer"], ("empo", "would be ignored", "grpo")),
        (["--objective.name=intuitor", "--objective.reward=a:b"], ("intuitor", "would be ignored")),
        (["--objective.name=format_reward"], ("objective.format_pattern", "objective.format_check")),
        (["--objective.name=ttrl", "--batch.responses_per_prompt=1"], ("ttrl", "batch.responses_per_prompt")),
        (["--objective.name=rent", "--importance.ratio=token_mean"], ("importance.ratio", "surrogate.ratio")),
        (
            ["--objective.name=rl_token", "--surrogate.average=sequence_mean"],
            ("rl_token", "token_mean or length_limit"),
        ),
        (["--objective.name=rl_trajectory", "--surrogate.kl=0.1"], ("surrogate.kl = 0.1", "objective.alpha")),
        (["--surrogate.kl=0.1"], ("surrogate.kl", "powerflow is none of them")),
        (["--objective.name=tb_token", "--surrogate.divide_by_std=false"], ("surrogate.divide_by_std", "tb_token")),
        (["--objective.flowrl_form=release"], ("objective.flowrl_form", "objective.name is powerflow")),
        (["--objective.name=empo", "--objective.beta=3"], ("objective.beta serves flowrl and tba alone", "is empo")),
        (["--objective.name=ttrl", "--objective.empo_unparsed=own_cluster"], ("empo_unparsed", "ttrl")),
        (["--objective.name=ttrl", "--objective.ttrl_trained=17"], ("ttrl_trained = 17", "responses_per_prompt = 16")),
        (["--objective.name=ttrl", "--objective.ttrl_trained=1"], ("objective.ttrl_trained = 1", "2 or more")),
        (["--objective.name=empo", "--objective.ttrl_trained=8"], ("objective.ttrl_trained", "objective.name = ttrl")),
        (["--objective.name=rent", "--objective.rent_unanswered=0"], ("objective.rent_unanswered", "below 0")),
        (["--objective.rent_unanswered=-7"], ("objective.rent_unanswered", "objective.name = rent")),
    ],
)
def test_refused_with_both_names(arguments, named):
    message = refusal(arguments)
    for name in named:
        assert name in message, message


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_a_policy_gradient_takes_the_settings_of_the_surrogate(name):
    own = {"grpo": ["--objective.reward=answer"], "format_reward": ["--objective.format_pattern=x"]}.get(name, [])
    config, _ = read_config([f"--objective.name={name}", "--surrogate.ratio=token_mean", *own])
    assert config.objective.name == name and config.surrogate.ratio == "token_mean"


def test_every_method_has_a_preset():
    assert {settings["objective.name"] for settings in METHODS.values()} == set(typing.get_args(Method))
    assert {name.removeprefix("compare-") for name in PRESETS if name.startswith("compare-")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_presets_hold_everything_equal_but_the_method(name):
    """What differs is named in METHODS, where only settings of methods stand; and each run has its own directory."""
    preset, powerflow = PRESETS[f"compare-{name}"], PRESETS["compare-powerflow"]
    assert set(preset) >= set(powerflow)
    differing = {setting for setting in preset if preset[setting] != powerflow.get(setting)}
    answers = {"objective.answer_field"} if "objective.reward" in METHODS[name] else set()
    assert differing <= set(METHODS[name]) | {"run.output"} | answers
    assert {setting.split(".")[0] for setting in METHODS[name]} <= {"objective", "surrogate"}
    shared = {"objective.alpha", "objective.format_pattern", "objective.format_penalty", "objective.grader"}
    assert not shared & set(METHODS[name])
    assert preset["run.output"].endswith(name)


def test_powerflows_preset_is_the_papers():
    paper = PRESETS["paper-reasoning-base"]
    changed = {name for name, value in PRESETS["compare-powerflow"].items() if paper.get(name) != value}
    assert changed == {"objective.name", "run.output"}  # name: the default, said


@pytest.mark.parametrize("name", ["empo", "flowrl"])
def test_an_alpha_that_nothing_reads_is_warned_about(name):
    given = [f"--objective.name={name}", *(["--objective.reward=answer"] if name == "flowrl" else [])]
    config, _ = read_config([*given, "--objective.alpha=2"])
    assert doubtful(config) == [
        f"objective.alpha = 2 is not read, since objective.name = {name} heads for no power of the base"
    ]
    assert doubtful(read_config(given)[0]) == []


@pytest.mark.parametrize("name", ["powerflow", "tb_trajectory", "tb_token"])
def test_a_reward_that_is_measured_alone_is_warned_about(name):
    given = [f"--objective.name={name}", "--objective.alpha=0.5"]
    assert doubtful(read_config(given)[0]) == []
    (said,) = doubtful(read_config([*given, "--objective.reward=answer"])[0])
    assert said.startswith(f"objective.reward = answer is measured, and objective.name = {name} does not train on it")
    assert said.endswith("set objective.name = flowrl or tba or grpo")


def test_an_alpha_that_sharpens_without_a_format_is_warned_about():
    config, _ = read_config(["--objective.name=rl_token", "--objective.alpha=2"])
    assert [warning.partition(" without")[0] for warning in doubtful(config)] == ["alpha above 1"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--objective.grader=numeric"],
            "objective.grader = numeric is not read, since objective.name = powerflow compares no answers",
        ),
        (
            ["--objective.name=rent", "--objective.grader=exact"],
            "objective.grader = exact is not read, since objective.name = rent",
        ),
        (
            ["--objective.name=empo", "--objective.answer_field=gold"],
            "objective.answer_field = gold is not read, since",
        ),
        (["--objective.name=ttrl", "--objective.grader=exact"], None),
        (["--objective.name=rent", "--objective.grader=exact", "--objective.rent_unanswered=-7"], None),
        (["--objective.name=grpo", "--objective.reward=answer", "--objective.answer_field=gold"], None),
    ],
)
def test_settings_of_answers_that_nothing_reads_are_told_and_not_refused(given, said):
    """So that saved runs of earlier presets, which had them, go on."""
    found = [warning for warning in doubtful(read_config(given)[0]) if "alpha above 1" not in warning]
    assert found == [] if said is None else found[0].startswith(said)
