"""Each compared method, end to end: one step of `fastflow train` on a model of a few thousand parameters."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fastflow.config.presets import METHODS
from fastflow.config.reader import read_config
from fastflow.errors import FastflowError
from fastflow.train.answers import GradedAnswers
from fastflow.train.command import train
from fastflow.train.learner import Learner
from small_models import save_model


@pytest.fixture
def settings(tmp_path) -> dict[str, object]:
    """A vocabulary of eight tokens, so that some of the responses give the right answer."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ab{n % 4}", "answer": "a"}) + "\n" for n in range(4)))
    return {
        "model.path": save_model(tmp_path / "model", pieces="ab0123", vocab_size=8),
        "model.device": "cpu",
        "data.path": prompts,
        "rollout.max_response_tokens": 2,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 12,
        "batch.tokens_per_microbatch": 64,
        "batch.updates_per_rollout": 2,
        "optim.lr": 1e-2,
        "optim.max_grad_norm": 100,
        "objective.format_pattern": "[ab]",
        "run.steps": 1,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }


def run(settings, **changes) -> dict[str, object]:
    """The metrics of the last step."""
    named = {**settings, **{name.replace("__", "."): value for name, value in changes.items()}}
    compares = named.get("objective.reward") or named["objective.name"] in ("empo", "ttrl")
    merged = {**({"objective.grader": "exact"} if compares else {}), **named}
    config, _ = read_config([f"--{name}={json.dumps(value) if value in (True, False) else value}"
                             for name, value in merged.items()])  # fmt: skip
    train(config, Console(quiet=True))
    return json.loads((settings["run.output"] / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"distil"}))  # which samples nothing: see test_distil.py
def test_one_step(settings, name):
    if name in ("grpo", "dr-grpo"):
        settings["rollout.max_response_tokens"] = 1  # or hardly any response is right
    metrics = run({**settings, **METHODS[name]})
    assert metrics["responses"] == 48
    assert metrics["grad_norm"] > 0 and abs(metrics["loss"]) < 1e6
    assert metrics["malformed_share"] is not None
    assert metrics["alpha"] == (4 if METHODS[name]["objective.name"] == "powerflow" else None)
    decided_by_text = ("grpo", "empo", "ttrl", "random_reward", "format_reward", "flowrl", "tba")
    assert (metrics["reward_mean"] is not None) == (METHODS[name]["objective.name"] in decided_by_text)
    assert metrics["ratio_p50"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__name": "rent", "objective__rent_unanswered": -7},
        {"objective__name": "empo", "objective__empo_unparsed": "own_cluster", "surrogate__ratio": "token_mean"},
        {"objective__name": "intuitor", "surrogate__kl": 0.005},
        {"objective__name": "ttrl", "surrogate__kl": 0.1, "surrogate__kl_estimator": "k2"},
        {"objective__name": "flowrl", "objective__reward": "answer", "objective__flowrl_form": "release"},
    ],
)
def test_switches(settings, changes):
    assert run(settings, **changes)["grad_norm"] > 0


def test_all_responses_vote_and_some_are_trained(settings, monkeypatch):
    """The responses to each prompt are answers in turn, and the second half outvotes the first."""
    seen = []

    def update(self, groups, *, reward, **more):
        seen.append(([len(group.trajectories) for group in groups], reward.tolist()))
        return learn(self, groups, reward=reward, **more)

    def classes(self, texts, sizes):
        return [int(place > 0) for size in sizes for place in range(size)]

    learn = Learner.update
    monkeypatch.setattr(Learner, "update", update)
    monkeypatch.setattr(GradedAnswers, "classes", classes)
    metrics = run(settings, objective__name="ttrl", objective__ttrl_trained=2)
    assert metrics["responses"] == 48
    assert seen == [([2] * 2, [0.0, 1.0] * 2)] * 2
    assert metrics["reward_mean"] == 0.5


def test_the_rewards_mean_is_told_also_where_the_policy_decides(settings):
    metrics = run(settings, objective__name="rent", batch__updates_per_rollout=1)
    assert metrics["log_z"] == pytest.approx(-metrics["token_entropy"], rel=0.5)  # the group's mean reward
    assert metrics["reward_mean"] is None


def test_grpo_learns_what_its_reward_asks_for(settings):
    """The right answer is the letter a: its share rises from about an eighth."""
    changes = {"objective__name": "grpo", "objective__reward": "answer", "rollout__max_response_tokens": 1}
    assert run(settings, run__steps=8, **changes)["reward_mean"] > 0.5


@pytest.mark.parametrize("changes", [{}, {"lora.rank": 2}])
def test_without_a_base_the_policy_learns_the_same(settings, changes, tmp_path):
    weights, lines = [], []
    for scored in (True, False):
        settings["run.output"] = tmp_path / f"scored-{scored}"
        more = {**changes, "objective.name": "random_reward", "surrogate.score_base": scored, "run.steps": 2}
        lines.append(run({**settings, **more}))
        weights.append(load_file(settings["run.output"] / "policy" / "model.safetensors"))
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    for name in ("slope", "base_logprob_mean", "base_kl"):
        assert lines[0][name] is not None and lines[1][name] is None, name
    assert lines[0]["loss"] == lines[1]["loss"] and lines[1]["skipped_updates"] == 0
    samples = (settings["run.output"] / "samples.jsonl").read_text().splitlines()
    assert samples and all(json.loads(line, parse_constant=pytest.fail) for line in samples)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"surrogate.kl": 0.1}, r"surrogate\.kl = 0\.1 reads it"),
        ({"objective.name": "rl_token"}, r"objective\.name = rl_token reads it"),
        ({"model.base": "other"}, r"model\.base = other; drop one"),
        ({"objective.name": "powerflow"}, r"surrogate\.score_base serves the policy gradients"),
    ],
)
def test_a_base_that_is_read_is_loaded(settings, changes, words):
    with pytest.raises(FastflowError, match=words):
        run({**settings, "objective.name": "random_reward", "surrogate.score_base": False, **changes})


def test_records_without_an_answer_are_refused(settings):
    with pytest.raises(FastflowError, match=r"the record has no 'gold'.*objective\.answer_field"):
        run(settings, objective__name="grpo", objective__reward="answer", objective__answer_field="gold")


class TestAnswers:
    @pytest.fixture(params=["math", "numeric"])
    def reader(self, request):
        made = GradedAnswers(request.param, "answer")
        yield made
        made.close()

    def test_equal_answers_have_one_number_in_their_group(self, reader):
        texts = [r"so \boxed{4}", r"\boxed{4.0}", r"\boxed{5}", "I do not know", r"\boxed{5}", r"\boxed{5}"]
        first, same, other, none, *rest = reader.classes(texts, [4, 2])
        assert first == same != other and none == -1 and rest[0] == rest[1] != -1

    def test_right_answers(self, reader):
        records = [{"answer": 4}, {"answer": "4"}, {"answer": "4"}]
        assert reader.are_right([r"\boxed{4}", r"\boxed{5}", "none"], records) == [True, False, False]

    def test_a_solution_in_a_box_is_an_answer(self):
        reader = GradedAnswers("math", "solution")
        record = {"solution": r"We get $x = 3$, so it is $\boxed{\frac{1}{2}}$."}
        assert reader.are_right([r"\boxed{0.5}", r"\boxed{3}"], [record] * 2) == [True, False]
        reader.close()
