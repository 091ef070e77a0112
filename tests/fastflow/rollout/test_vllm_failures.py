"""What a user sees when vLLM dies, hangs, fails or refuses, and what of the run survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm import kept_engine, messages
from small_models import make_causal_lm, save_model
from vllm_runs import (
    HEAD_DIM,
    PARAMS,
    assert_agrees,
    assert_equal,
    descendants,
    make_model,
    make_requests,
    needs_vllm,
    perturb,
    start,
)

KILLS = int(os.environ.get("FASTFLOW_TEST_KILLS", "6"))  # each costs a start of vLLM


@pytest.fixture(autouse=True)
def no_orphans():
    before = set(descendants())
    yield
    assert not set(descendants()) - before


@needs_vllm
def test_a_killed_process_is_replaced_and_samples_the_same(rng, caplog):
    finished = []
    requests = make_requests(rng, responses=200)
    with closing(start(make_model(), on_progress=finished.append, restarts=1)) as sampler:
        expected = sampler.sample(requests, PARAMS)
        assert len(finished) > 2  # long enough to be killed in the middle

        def kill_at_the_first_response(count):
            finished.append(count)
            if len(finished) == 1:
                os.kill(sampler._engine.process.pid, signal.SIGKILL)

        finished.clear()
        sampler._engine._on_progress = kill_at_the_first_response
        assert_equal(sampler.sample(requests, PARAMS), expected)
        assert min(finished) < 0 and sum(finished) == 800  # what the lost process had finished is not counted twice
        assert "died by signal SIGKILL, which is also how Linux ends a process when memory runs out" in caplog.text
        assert "vLLM is restarted (1 of at most 1 in a row)" in caplog.text

        os.kill(sampler._engine.process.pid, signal.SIGSTOP)
        sampler._engine.process._silence = 1.0
        begun = time.monotonic()
        assert_equal(sampler.sample(requests, PARAMS), expected)  # a completed sample made the count start again
        assert "shown no progress for 1 seconds (rollout.silence" in caplog.text
        assert time.monotonic() - begun < 60


@needs_vllm
def test_large_messages_to_and_from_a_process_that_stops(rng):
    """More than a pipe holds, both ways: neither side may wait for ever."""
    requests = [Request(Prompt(rng.integers(1, 40, 60)), (place,)) for place in range(1500)]  # 700 KB
    with closing(start(make_model(), max_sequences=256, context=72)) as sampler:
        params = SamplingParams(max_response_tokens=2)
        expected = sampler.sample(requests, params)
        os.kill(sampler._engine.process.pid, signal.SIGSTOP)
        sampler._engine.process._silence = 1.0
        assert_equal(sampler.sample(requests, params), expected)
        sampler.begin(requests, params)
        while sampler._engine.process._pulse[1] < len(requests) - 200:
            time.sleep(0.01)
        os.kill(sampler._engine.process.pid, signal.SIGKILL)  # about when it writes its reply
        assert_equal(sampler.finish(), expected)


@needs_vllm
def test_a_process_lost_while_sampling_ahead_samples_from_the_weights_of_now(rng):
    model = make_model()
    requests = make_requests(rng)
    with closing(start(model)) as sampler:
        sampler.begin(requests, PARAMS)
        os.kill(sampler._engine.process.pid, signal.SIGKILL)
        perturb(model)
        groups = sampler.finish()
        assert_agrees(groups, model)
        assert {trajectory.weight_version for group in groups for trajectory in group.trajectories} == {1}


@needs_vllm
def test_too_many_losses_and_refused_requests_stop_with_a_reason(rng):
    model = make_model()
    with closing(start(model, restarts=0)) as sampler:
        too_long = [Request(Prompt(rng.integers(1, 40, 60)), (0,))]  # fits the model, not the engine's context of 40
        with pytest.raises(FastflowError, match=r"vLLM refuses the step's requests: .*40.*; check the prompts"):
            sampler.sample(too_long, SamplingParams(max_response_tokens=8))
        for ids, message in ([], "has no tokens"), ([3, 40], "holds token 40, but the model's head has 40 rows"):
            with pytest.raises(FastflowError, match=f"prompt 1 {message}"):
                sampler.sample([Request(Prompt(np.array(ids, dtype=np.int64)), (0,))], PARAMS)
        with pytest.raises(FastflowError, match="stop texts need a tokenizer"):
            sampler.sample(make_requests(rng), SamplingParams(max_response_tokens=8, stop=("a",)))
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model)  # a refusal harms nothing

        os.kill(sampler._engine.process.pid, signal.SIGKILL)
        with pytest.raises(FastflowError, match=r"(?s)SIGKILL.*rollout\.restarts = 0 allows no other restart"):
            sampler.sample(make_requests(rng), PARAMS)


@needs_vllm
def test_a_weight_of_the_wrong_shape_stops_the_run_by_name():
    model = make_model()
    with closing(start(model)) as sampler:
        attach = sampler._engine.weights.attach
        (places,) = attach.rounds
        wrong = tuple(
            messages.Place(place.name, place.block, place.offset, torch.Size([3]))
            if place.name == "model.norm.weight"
            else place
            for place in places
        )
        sampler._engine.process.send(messages.Attach(attach.blocks, (wrong,)))
        with pytest.raises(FastflowError, match=r"vLLM could not take the policy's weights: .*; sample with"):
            sampler.load_weights(model)

    with closing(start(model)) as sampler:
        missing = tuple(place for place in places if place.name != "model.norm.weight")
        sampler._engine.process.send(messages.Attach(sampler._engine.weights.attach.blocks, (missing,)))
        with pytest.raises(FastflowError, match=r"1 parameters that got no weights, model\.norm\.weight among them"):
            sampler.load_weights(model)


@needs_vllm
@pytest.mark.parametrize(
    ("head_dim", "context", "message"),
    [
        (HEAD_DIM, 4000, r"vLLM could not start: .*; check the model.*fastflow doctor"),  # more than the model has
        (8, 40, r"log-probs of a probe: Unsupported .*head_dim=8.*; sample with --rollout\.engine local"),
    ],
)
def test_what_vllm_does_not_take_stops_before_the_first_step(head_dim, context, message):
    with pytest.raises(FastflowError, match=message):
        start(PackedModel(make_causal_lm("qwen3", head_dim=head_dim)), context=context)


@needs_vllm
def test_an_engine_that_takes_too_long_to_start_is_ended():
    with pytest.raises(FastflowError, match=r"no progress for 0\.5 seconds \(rollout\.startup"):
        start(make_model(), startup=0.5)


@needs_vllm
def test_an_engine_that_finds_no_memory_says_so(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")  # GiB
    with pytest.raises(FastflowError, match=r"(?s)(out of memory while|could not) start.*rollout\.mem"):
        start(make_model())


TRAIN = """
import sys
from fastflow.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def train_arguments(tmp_path, *, name: str, steps: int, tied: bool = True, **changes) -> list[str]:
    """The command line of a small run with vLLM; every run of one test shares model and prompts."""
    directory = tmp_path / f"model-{tied}"
    if not directory.exists():
        save_model(directory, tied=tied, head_dim=HEAD_DIM)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(10)))
    settings = {
        "model.path": directory,
        "model.device": "cpu",
        "data.path": prompts,
        "rollout.engine": "vllm",
        "rollout.max_response_tokens": 6,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 3,
        "optim.lr": 1e-2,
        "objective.alpha": 2,
        "run.steps": steps,
        "run.threads": 1,
        "run.output": tmp_path / name,
        "run.report": "false",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return ["train", *(f"--{key}={value}" for key, value in settings.items())]


def metrics_of(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def final_weights(directory) -> bytes:
    return (directory / "policy" / "model.safetensors").read_bytes()


def run_cli(arguments: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


@needs_vllm
@pytest.mark.parametrize(("tied", "ahead"), [(True, 0), (False, 0), (True, 1)])
def test_fastflow_train_end_to_end(tied, ahead, tmp_path):
    """The command a user types; after each sync vLLM's log-probs are the trainer's."""
    process = run_cli(train_arguments(tmp_path, name="run", steps=3, tied=tied, rollout__ahead=ahead))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    lines = metrics_of(tmp_path / "run")
    assert [line["weight_lag"] for line in lines] == ([0, 1, 1] if ahead else [0, 0, 0])
    for line in lines:
        if line["weight_lag"] == 0:
            assert line["mismatch_max"] < 1e-4
            assert line["ratio_p50"] == pytest.approx(1, abs=1e-3)
        else:
            assert line["mismatch_max"] > 1e-3  # the update in between, which the weight corrects for
            assert line["ratio_p01"] != line["ratio_p99"]
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


@needs_vllm
def test_kills_change_nothing(tmp_path, monkeypatch):
    """The child is killed at random moments of a run; the final policy is bitwise that of a quiet run."""
    from rich.console import Console

    from fastflow.config.reader import read_config
    from fastflow.train.command import train

    def run(name: str) -> None:
        train(
            read_config(train_arguments(tmp_path, name=name, steps=KILLS + 10, rollout__restarts=KILLS + 10)[1:])[0],
            Console(quiet=True),
        )

    run("quiet")
    pids, kills, random_moment = [], [], random.Random(0)
    metrics = tmp_path / "disturbed" / "metrics.jsonl"
    real = kept_engine.EngineProcess

    def noted(*arguments, **options):
        process = real(*arguments, **options)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(kept_engine, "EngineProcess", noted)
    over = threading.Event()

    def kill() -> None:
        while len(kills) < KILLS and not over.wait(random_moment.uniform(0, 0.2)):
            has_begun = metrics.exists() and metrics.stat().st_size > 0  # a loss before that ends the run
            if has_begun and pids[-1] not in kills:
                kills.append(pids[-1])
                os.kill(pids[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run("disturbed")
    finally:
        over.set()
        killer.join()
    assert len(kills) == KILLS
    assert final_weights(tmp_path / "disturbed") == final_weights(tmp_path / "quiet")
    assert len(metrics_of(tmp_path / "disturbed")) == KILLS + 10


@needs_vllm
@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_trainer_leaves_no_orphan(number, whole_group, tmp_path):
    """Signals save the policy and give their exit code, also where every process of the group gets them, as from a
    terminal or a scheduler; a killed trainer can save nothing, but its child ends too.
    """
    process = run_cli(train_arguments(tmp_path, name="run", steps=10_000), start_new_session=True)
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists() or not metrics_of(tmp_path / "run"):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        children = descendants(process.pid)
        assert len(children) == 1
        if whole_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "; the policy after step" in output and "Traceback" not in output
        assert "vLLM is restarted" not in output  # its process did not go first
        assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
