"""Whole runs on several gloo ranks: one started as users start it, the others forked with their imports done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cli_runs import lines_in, options, settings, start, wait_for
from evaluated_runs import rows_of, write_task
from preloaded import Preloaded
from rank_runs import assert_gone, finish, ranks_of
from rank_worker import WEIGHTS, assert_close
from resumed_runs import check_same, metrics_of, newest_save, tensors_of
from small_models import save_model

pytestmark = pytest.mark.distributed


def begin(home: Path, *more: str, name: str = "run", new: bool = False, **changes) -> subprocess.Popen | Preloaded:
    values = {**settings(home, **changes), "run.output": home / name}
    return start([*options(values), *more], new=new)


def responses(run: Path) -> list[str]:
    return [json.loads(line)["response"] for line in (run / "samples.jsonl").read_text().splitlines()]


def assert_like(several: Path, one: Path, tolerance: float = 1e-3, *, together: bool = False) -> None:
    """The same responses, metrics and weights, but for the order of sums. together: compare the weights by the norm of
    them all, since Adam turns the rounding of a gradient near zero into a step.
    """
    for mine, theirs in zip(metrics_of(several), metrics_of(one), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if isinstance(value, float) and not key.startswith("mismatch"):
                assert value == pytest.approx(theirs[key], rel=tolerance, abs=1e-4), key
    assert responses(several) == responses(one)
    found, expected = (
        {
            name: tensor
            for name, tensor in tensors_of(newest_save(run)).items()
            if name.startswith(("policy", "adapter"))
        }
        for run in (several, one)
    )
    assert found.keys() == expected.keys()
    if together:
        assert_close([found[name] for name in expected], list(expected.values()), WEIGHTS)
        return
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_on_two_devices_is_that_on_one(tmp_path):
    changes = {"run.samples_every": 1, "lora.rank": 2, "rollout.stop": "[a]", "batch.updates_per_rollout": 2}
    changes |= {"importance.source": "recompute"}
    changes |= {"eval.every": 2, "eval.tasks": f"[{write_task(tmp_path)}]", "eval.grader": "exact", "eval.samples": 3}
    changes |= {"run.best_metric": "eval/own/tokens"}
    finish(begin(tmp_path, name="one", **changes))
    said = finish(begin(tmp_path, "--devices", "2", name="two", new=True, **changes))
    assert said.count("policy saved in") == 1
    assert_like(tmp_path / "two", tmp_path / "one")
    assert not (tmp_path / "two" / "run.lock").exists()
    for step in (0, 2, 3):
        several, one = (rows_of(tmp_path / name, step) for name in ("two", "one"))
        assert [row["response"] for row in several] == [row["response"] for row in one]


def test_three_ranks_have_less_than_one_response_each(tmp_path):
    changes = {"batch.prompts_per_step": 1, "batch.responses_per_prompt": 2, "run.samples_every": 1, "run.steps": 2}
    finish(begin(tmp_path, name="one", **changes))
    finish(begin(tmp_path, "--devices=3", name="three", **changes))
    assert_like(tmp_path / "three", tmp_path / "one")


@pytest.mark.parametrize("method", ["ttrl", "distil"])
def test_a_compared_method_on_two_devices_is_that_on_one(tmp_path, method):
    """The first rank reads the answers, all of which vote; recorded responses need neither sampler nor base."""
    changes = {"objective.name": method, "run.samples_every": 1, "run.steps": 2}
    if method == "ttrl":
        changes |= {"objective.grader": "exact", "batch.responses_per_prompt": 6, "objective.ttrl_trained": 3}
    else:
        changes["data.path"] = tmp_path / "recorded.jsonl"
        records = [{"prompt": f"ab{n}", "response": text} for n in range(10) for text in (f"x{n}", f"y{n}z", "q")]
        changes["data.path"].write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, more in (("one", []), ("two", ["--devices=2"])):
        finish(begin(tmp_path, *more, name=name, **changes))
    assert_like(tmp_path / "two", tmp_path / "one")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    finish(begin(home, name="one", **{"run.samples_every": 1, "run.steps": 4}))
    return home


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (2, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(undisturbed, before, after):
    name = f"{before}-{after}"
    finish(begin(undisturbed, f"--devices={before}", name=name, **{"run.samples_every": 1, "run.steps": 2}))
    run = undisturbed / name
    weights = tensors_of(newest_save(run))
    resumed = start(["train", "--resume", str(run), "--run.steps=4", f"--devices={after}"])
    said = finish(resumed)
    assert ("sums have another order" in " ".join(said.split())) == (before != after)
    assert_like(run, undisturbed / "one")
    first = tensors_of(run / "checkpoints" / "step-2")
    assert first.keys() == weights.keys()


def test_a_cut_head_goes_on_gathered_and_the_reverse(tmp_path):
    save_model(tmp_path / "model", tied=False, vocab_size=41)  # which neither 2 nor 3 ranks cut evenly
    finish(begin(tmp_path, name="one", **{"run.samples_every": 1, "run.steps": 4}))
    cut = {"model.head": "cut", "run.samples_every": 1, "run.steps": 2}
    said = finish(begin(tmp_path, "--devices=2", name="run", **cut))
    assert "head cut over the ranks, at most 21 of its 41 rows on each" in said
    for devices, head, steps in ((3, "gathered", 3), (2, "cut", 4)):
        changed = [f"--run.steps={steps}", f"--model.head={head}", f"--devices={devices}"]
        said = finish(start(["train", "--resume", str(tmp_path / "run"), *changed]))
        assert "with another model.head the run goes on" in " ".join(said.split())
    assert_like(tmp_path / "run", tmp_path / "one")


def test_a_head_that_is_the_embedding_stays_cut(undisturbed):
    changes = {"run.samples_every": 1, "run.steps": 4, "model.head": "cut"}
    said = finish(begin(undisturbed, "--devices=2", name="tied", **changes))
    assert "head cut over the ranks, at most 20 of its 40 rows on each" in said
    assert "before it keeps its part" not in said  # no rank loads a whole model
    assert_like(undisturbed / "tied", undisturbed / "one")


def test_a_run_goes_on_with_another_number_of_replicas(undisturbed):
    """Two replicas of two ranks, then one rank, then the replicas again, and a save at each change."""
    run = undisturbed / "replicas"
    changes = {"run.samples_every": 1, "run.steps": 2, "run.replicas": 2}
    said = finish(begin(undisturbed, "--devices=4", name=run.name, **changes))
    assert "4 ranks in 2 replicas, each rank with 1/2 of every weight" in said
    assert "before it keeps its part" not in said  # no rank loads a whole model
    finish(start(["train", "--resume", str(run), "--run.steps=3", "--run.replicas=1"]))
    finish(start(["train", "--resume", str(run), "--run.steps=4", "--run.replicas=2", "--devices=4"]))
    assert_like(run, undisturbed / "one", together=True)


def test_dropout_goes_on_to_the_bit_on_as_many_ranks(tmp_path):
    changes = {"lora.rank": 2, "lora.dropout": 0.3, "run.save_every": 1, "run.samples_every": 1, "optim.lr": 1e-2}
    for name, steps in (("whole", 4), ("halves", 2)):
        finish(begin(tmp_path, "--devices=2", name=name, **{**changes, "run.steps": steps}))
    first, second = (
        load_file(newest_save(tmp_path / "halves") / "trainer" / "generators" / f"rank-{rank}.safetensors")
        for rank in (0, 1)
    )
    assert not torch.equal(first["torch.cpu"], second["torch.cpu"])
    finish(start(["train", "--resume", str(tmp_path / "halves"), "--run.steps=4", "--devices=2"]))
    check_same(tmp_path / "whole", tmp_path / "halves")


def test_a_refusal_is_said_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter").write_text("mine")
    said = finish(begin(tmp_path, "--devices", "2"), code=2)
    assert said.count("is not empty and not a run of fastflow") == 1
    assert "lost another rank" not in said


def test_settings_that_need_one_rank_are_refused_before_anything_starts(tmp_path):
    said = finish(begin(tmp_path, "--devices", "2", **{"model.compile": "layers"}), code=2)
    assert said.count("model.compile = layers does not work on 2 ranks yet") == 1
    said = finish(begin(tmp_path, "--devices", "3", **{"run.replicas": 2}), code=2)
    assert said.count("run.replicas = 2 does not divide 3 ranks") == 1
    said = finish(begin(tmp_path, **{"run.replicas": 2}), code=2)
    assert said.count("run.replicas = 2 does not divide one rank; start a multiple of 2") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_on_all_ranks(tmp_path, number):
    process = begin(tmp_path, "--devices", "2", **{"run.steps": 10000})
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: lines_in(metrics) >= 2, process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(number)
    said = finish(process, code=128 + number)
    assert said.count("the policy after step") == 1
    assert re.search(r"to go on: fastflow train --resume \S+ --devices 2", said)
    assert_gone(ranks, 1)
    done = metrics_of(tmp_path / "run")
    state = json.loads((newest_save(tmp_path / "run") / "trainer" / "state.json").read_text())
    assert state["step"] == len(done)


def test_a_save_that_fails_ends_all_ranks(tmp_path):
    process = begin(tmp_path, "--devices", "2", **{"run.steps": 10000, "run.save_every": 40})
    wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") >= 1, process)
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    ranks = ranks_of(process)
    said = " ".join(finish(process, code=2).split())
    assert said.count("the save of step 40") >= 1
    assert "lost another rank" not in said
    assert_gone(ranks, 1)
    rescued = tmp_path / "run" / "rescued"
    assert f"the current trained weights are in {rescued}" in said  # which the first rank had gathered for the save
    with (
        safe_open(rescued / "weights-00001.safetensors", "pt") as kept,
        safe_open(tmp_path / "model" / "model.safetensors", "pt") as start_of_all,
    ):
        assert set(kept.keys()) == set(start_of_all.keys())


def test_a_first_rank_without_memory_for_a_save_holds_back_nobody(tmp_path):
    changes = {"run.steps": 5, "run.save_every": 2, "run.hang_after": 60}
    changes |= {"objective.name": "flowrl", "objective.reward": "no_host_memory:reward"}
    said = " ".join(finish(begin(tmp_path, "--devices", "2", **changes), code=2).split())
    assert said.count("the save of step 4") >= 1 and "can't allocate memory" in said and "free -h" in said
    assert "the policy after step 2 (2 updates) is in" in said


def test_a_rank_that_dies_ends_the_run(tmp_path):
    process = begin(tmp_path, "--devices", "2", **{"run.steps": 10000})
    wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") >= 2, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    said = finish(process, code=128 + signal.SIGKILL)
    assert "was killed by SIGKILL" in said
    assert time.monotonic() - killed < 60
    assert_gone(ranks, 1)


def test_ranks_do_not_outlive_their_launcher(tmp_path):
    process = begin(tmp_path, "--devices", "2", **{"run.steps": 10000})
    wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") >= 1, process)
    ranks = ranks_of(process)
    process.kill()
    assert_gone(ranks, 5)
