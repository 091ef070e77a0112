"""distil end to end: no engine and no base, the file's responses, resumed to the bit, and what is measured."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from cli_runs import settings as tiny
from fastflow.config.reader import read_config
from fastflow.errors import FastflowError
from fastflow.rollout import engines
from fastflow.train.announcement import describe
from fastflow.train.dry_run import check_inputs
from fastflow.train.trainer import Trainer
from resumed_runs import check_same, configure, run_to_the_end, run_until_killed

UNKNOWN = ("base_logprob_mean", "log_z", "token_entropy", "sequence_entropy", "slope", "mismatch_kl", "weight_lag")


def distil(home, **changes) -> dict[str, object]:
    """Ten prompts, each with four responses: one is cut."""
    file = home / "samples.jsonl"
    if not file.exists():
        records = [
            {"prompt": f"ab{n}", "response": text, "finish_reason": "length" if text == "cccccc" else "stop"}
            for n in range(10)
            for text in (f"x{n}", f"y{n}z", "q", "cccccc")
        ]
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    ours = {"objective.name": "distil", "data.path": file, "run.steps": 4, "batch.updates_per_rollout": 2}
    return ours | {name.replace("__", "."): value for name, value in changes.items()}


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(engines, "LocalSampler", None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora__rank": 2},
        {"objective__distil_average": "token_mean"},
        {"objective__distil_average": "sequence_mean"},
    ],
    ids=str,
)
def test_the_likelihood_rises(changes, tmp_path, no_engine):
    changes = {"run__steps": 12, "optim__lr": 3e-3, "run__report": "true", **changes}
    run = run_to_the_end(configure(tmp_path, **distil(tmp_path, **changes)))
    first, *_, last = metrics_of(run)
    assert last["sequence_logprob_mean"] > first["sequence_logprob_mean"]
    assert last["logprob_mean"] == pytest.approx(-last["residual_mean"])
    assert all(last[name] is None for name in UNKNOWN)
    assert last["truncated_share"] > 0 and last["alarms"] == []
    assert (run / "report.html").exists()


def test_no_base_is_loaded_and_the_run_says_what_it_learns_from(tmp_path):
    config = configure(tmp_path, **distil(tmp_path))
    trainer = Trainer(config, Console(quiet=True))
    assert trainer.learner.base is None
    assert "40 recorded responses to 10 prompts, 4 each; each prompt has its turn 1.6 times, each" in check_inputs(
        config
    )
    assert "of recorded responses, without a base, on " in describe(trainer)
    trainer.close()


@pytest.mark.parametrize("changes", [{}, {"lora__rank": 2, "lora__dropout": 0.5}], ids=str)
def test_resumed_is_undisturbed(changes, tmp_path):
    changes = distil(tmp_path, run__save_every=1, run__samples_every=1, **changes)
    whole = run_to_the_end(configure(tmp_path, **changes, **{"run.output": tmp_path / "whole"}))
    config = configure(tmp_path, **changes)
    run_until_killed(config, before=3)
    check_same(run_to_the_end(config, resume="yes"), whole)


def test_each_response_is_taken_once_before_any_is_taken_again(tmp_path):
    """Two of four a turn: after two epochs of the ten prompts, the first of which ends within a step, each was once."""
    changes = distil(tmp_path, batch__responses_per_prompt=2, run__steps=5)
    trainer = Trainer(configure(tmp_path, **changes), Console(quiet=True))
    groups = [group for step in range(1, 6) for group in trainer.sample(step)]
    taken = Counter((group.prompt.text, tuple(entry.response_ids)) for group in groups for entry in group.trajectories)
    assert len(taken) == 40 and set(taken.values()) == {1}
    trainer.close()


def test_other_responses_are_another_run(tmp_path):
    config = configure(tmp_path, **distil(tmp_path, run__save_every=1))
    run_until_killed(config, before=2)
    file = tmp_path / "samples.jsonl"
    file.write_text(file.read_text().replace('"q"', '"r"'))
    with pytest.raises(FastflowError, match="does not give the prompts"):
        run_to_the_end(config, resume="yes")


def test_a_response_in_tokens_ends_with_any_end_of_the_model(tmp_path):
    config = configure(tmp_path, **distil(tmp_path))
    (tmp_path / "samples.jsonl").write_text(json.dumps({"prompt": "ab", "response_ids": [3, 5]}) + "\n")
    assert "it cut, so that it teaches no end" in check_inputs(config)
    settings = Path(config.model.path) / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [2, 5]}))
    assert "it ended" in check_inputs(config)
    trainer = Trainer(config, Console(quiet=True))
    assert trainer.prompts.all[0].responses[0].finish_reason == "stop"
    trainer.close()


def test_a_cut_response_teaches_no_end(tmp_path):
    """After training on a cut response alone, the end's probability behind it has not risen."""
    file = tmp_path / "samples.jsonl"
    for reason in ("length", "stop"):
        file.write_text(json.dumps({"prompt": "ab", "response": "cccc", "finish_reason": reason}) + "\n")
        run = run_to_the_end(configure(tmp_path, **distil(
            tmp_path, run__output=tmp_path / reason, batch__prompts_per_step=2, batch__responses_per_prompt=1,
            run__steps=1,
        )))  # fmt: skip
        assert metrics_of(run)[0]["length_mean"] == (4 if reason == "length" else 5)
    weights = [load_file(tmp_path / reason / "policy" / "model.safetensors") for reason in ("length", "stop")]
    assert any(not one.equal(weights[1][name]) for name, one in weights[0].items())


def test_truncated_responses_can_be_left_out(tmp_path):
    run = run_to_the_end(configure(tmp_path, **distil(tmp_path, objective__truncated="drop", run__steps=1,
                                                      batch__responses_per_prompt=4)))  # fmt: skip
    assert metrics_of(run)[0]["truncated_share"] == 0.25  # of what the step took; the loss has the others


def test_tokens_of_another_model_are_refused(tmp_path):
    config = configure(tmp_path, **distil(tmp_path))
    (tmp_path / "samples.jsonl").write_text(json.dumps({"prompt": "ab", "response_ids": [3, 400]}) + "\n")
    with pytest.raises(FastflowError, match="token 400"):
        Trainer(config, Console(quiet=True))


def test_a_model_that_reads_evaluates_responses(tmp_path, caplog):
    """One command to draw, one to train."""
    from fastflow.evaluate.command import evaluate
    from fastflow.evaluate.settings import read_settings

    values = tiny(tmp_path)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": f"ab{n}", "answer": "c"}) + "\n" for n in range(3)))
    evaluate(
        read_settings([
            str(values["model.path"]), "--tasks", str(tasks), "--method", "mcmc_exact", "--steps", "2", "--block", "2",
            "--samples", "3", "--max-tokens", "5", "--grader", "exact", "--workers", "1",
            "--output", str(tmp_path / "samples"),
        ]),
        Console(quiet=True),
    )  # fmt: skip
    (file,) = (tmp_path / "samples" / "responses").glob("*.parquet")
    with caplog.at_level(logging.WARNING):
        run = run_to_the_end(configure(tmp_path, **distil(tmp_path, data__path=file, batch__prompts_per_step=2)))
    assert metrics_of(run)[-1]["responses"] == 6 and "repeat" not in caplog.text


def test_a_distil_run_says_what_it_does_not_read():
    for option, named in (
        ("--rollout.temperature=0.5", "rollout.temperature has no meaning"),
        ("--rollout.engine=vllm", "rollout.engine has no meaning"),
        ("--importance.source=recompute", "importance.source has no meaning"),
        ("--importance.clip_low=0.1", "importance.clip_low has no meaning"),
        (
            "--objective.log_z=group_mean",
            "objective.log_z = group_mean is set, but objective.name = distil has no log_z",
        ),
        ("--objective.reward=a:b", "reads no reward"),
        ("--model.base=other", "loads no base"),
        ("--eval.every=2", "has no sampler to answer with"),
        ("--surrogate.kl=0.1", "distil is none of them"),
    ):
        with pytest.raises(FastflowError, match=named.replace(".", r"\.")):
            read_config(["--objective.name=distil", option])
    with pytest.raises(FastflowError, match=r"data\.response_field serves distil alone"):
        read_config(["--data.response_field=text"])
    with pytest.raises(FastflowError, match=r"objective\.distil_average serves distil alone"):
        read_config(["--objective.distil_average=sequence_mean"])
