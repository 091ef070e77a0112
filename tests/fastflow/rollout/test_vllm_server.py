"""Rollouts on real vLLM servers; marked vllm."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.data.response_text import spell
from fastflow.data.trajectory import flatten
from fastflow.errors import FastflowError
from fastflow.evaluate.creative.judge import JudgeModel
from fastflow.evaluate.creative.judging import grade_quality
from fastflow.evaluate.creative.reply_log import ReplyLog
from fastflow.evaluate.creative.rubric import find_rubric
from fastflow.evaluate.creative.settings import KEY_VARIABLE, JudgeConfig
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.server import plugin, weights
from fastflow.rollout.server.weights import WeightFolder
from fastflow.train.command import train
from server_runs import assert_same_responses, make_requests, needs_vllm
from small_models import make_causal_lm, save_model
from special_tokens import TURN, TURN_ID, make_chat_tokenizer
from truncated import WAYS, assert_truncates
from vllm_runs import HEAD_DIM, PARAMS, assert_agrees, perturb
from vllm_server import VllmServer

CHAT = {"reloading": "{{ messages[-1]['content'][-12:] }}"}  # of the judge; its context has 40 tokens


def test_the_plugin_never_keeps_vllm_from_starting(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "fastflow")
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.factory", None)
    plugin.register()
    plugin.register()
    assert "takes no weights from fastflow by weight transfer" in caplog.text


@needs_vllm
def test_the_plugin_registers_once():
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    plugin.register()
    plugin.register()
    assert WeightTransferEngineFactory._registry["fastflow"]().__name__ == "FileTransferEngine"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three servers: two that take transfers, a tied mixture of experts and an untied model, and an untied one that can
    only reload.
    """
    folder = tmp_path_factory.mktemp("servers")
    servers = {}
    try:
        for name, tied, transfers in (("tied", True, True), ("untied", False, True), ("reloading", False, False)):
            directory = save_model(folder / name, **settings_of(tied))
            tokenizer = make_chat_tokenizer()
            tokenizer.chat_template = CHAT.get(name)
            tokenizer.save_pretrained(directory)
            servers[name] = VllmServer(directory, transfers=transfers, log=folder / f"{name}.log")
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.kill()


def make_policy(tied: bool) -> PackedModel:
    """Of another seed than what the servers were started with."""
    return PackedModel(make_causal_lm(**settings_of(tied), seed=1))


def settings_of(tied: bool) -> dict:
    experts = {"family": "qwen3_moe", "moe_intermediate_size": 32}  # as wide as vLLM's kernels read them on a CPU
    return {"tied": tied, "head_dim": HEAD_DIM, **(experts if tied else {"family": "qwen3"})}


@needs_vllm
@pytest.mark.parametrize("name", ["tied", "untied", "reloading"])
def test_samples_and_logprobs_follow_the_weights(name, real, running, monkeypatch):
    """The untied one in many files, which cut through the tensors that vLLM fuses."""
    if name == "untied":
        monkeypatch.setattr(weights, "BUCKET_BYTES", 6000)
    model = make_policy(tied=name == "tied")
    counts = []
    sampler = running(model, real[name], max_sequences=32, silence=60.0, on_progress=counts.append)
    (server,) = sampler._servers
    assert server._transfers == (name != "reloading")
    requests = make_requests()
    first = sampler.sample(requests, PARAMS)
    assert_agrees(first, model)
    for trajectory, seed in zip(flatten(first), [seed for request in requests for seed in request.seeds], strict=True):
        ended = trajectory.response_ids[-1] == 0
        assert trajectory.finish_reason == ("stop" if ended else "length")
        assert ended or len(trajectory) == PARAMS.max_response_tokens
        assert 0 not in trajectory.response_ids[:-1]
        assert (trajectory.seed, trajectory.weight_version) == (seed, 0)
    assert_same_responses(first, sampler.sample(requests, PARAMS))

    perturb(model)
    sampler.load_weights(model)
    second = sampler.sample(requests, PARAMS)
    assert_agrees(second, model)
    assert {trajectory.weight_version for trajectory in flatten(second)} == {1}
    assert {trajectory.finish_reason for trajectory in flatten([*first, *second])} == {"stop", "length"}
    assert sum(counts) == 72


@needs_vllm
def test_truncated_distributions(real, running):
    model = make_policy(tied=False)
    sampler = running(model, real["untied"], max_sequences=128, silence=60.0)
    for way in WAYS:
        assert_truncates(sampler, model, SamplingParams(max_response_tokens=12, **way))


@needs_vllm
@pytest.mark.parametrize("alone", [True, False])
def test_special_tokens_are_stop_texts(alone, real, running):
    """Alone, and behind a token that stands before one without stop texts."""
    sampler = running(make_policy(tied=False), real["reloading"], max_sequences=32, silence=60.0)
    tokenizer, requests, params = make_chat_tokenizer(), make_requests(4, 32), SamplingParams(max_response_tokens=19)
    stop = TURN
    if not alone:
        unhindered = [entry.response_ids.tolist() for entry in flatten(sampler.sample(requests, params))]
        before = next(ids[ids.index(TURN_ID) - 1] for ids in unhindered if TURN_ID in ids[1:])
        stop = spell(tokenizer, [before, TURN_ID])
    stopped = flatten(sampler.sample(requests, replace(params, stop=(stop,))))
    for trajectory in stopped:
        text, before = spell(tokenizer, trajectory.response_ids), spell(tokenizer, trajectory.response_ids[:-1])
        ends = trajectory.response_ids[-1] == 0 or stop in text
        assert trajectory.finish_reason == ("stop" if ends else "length")
        assert stop not in before
    assert any(stop in spell(tokenizer, trajectory.response_ids) for trajectory in stopped)


@needs_vllm
def test_stop_texts_and_a_least_length(real, running):
    model = make_policy(tied=False)
    sampler = running(model, real["untied"], max_sequences=32, silence=60.0)
    requests = make_requests()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real["untied"].model)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    stopped = sampler.sample(requests, SamplingParams(max_response_tokens=12, stop=("a", "b")))
    assert_agrees(stopped, model)
    ends = [trajectory.response_ids[-1] for trajectory in flatten(stopped) if trajectory.finish_reason == "stop"]
    assert {a, b} & set(ends)
    for trajectory in flatten(stopped):
        assert not np.isin(trajectory.response_ids[:-1], [a, b, 0]).any()
    long = sampler.sample(requests, SamplingParams(max_response_tokens=12, min_response_tokens=8))
    assert all(0 not in trajectory.response_ids[:8] for trajectory in flatten(long))


@needs_vllm
def test_the_engine_reads_no_other_files_and_misses_none(real, running, tmp_path):
    server, model = real["tied"], make_policy(tied=True)
    sampler = running(model, server, silence=60.0)
    outside = WeightFolder(str(tmp_path)).write(model) / "model.safetensors"
    for file, message in (
        (outside, "is no safetensors file under"),
        (sampler._weights.directory / "config.json", "is no safetensors file under"),
        (sampler._weights.directory / "missing.safetensors", "this server sees no file"),
    ):
        assert server.post("/start_weight_update", {})[0] == 200
        status, text = server.post("/update_weights", {"update_info": {"file": str(file)}})
        assert (status, message in text) == (500, True)
    status, text = server.post("/init_weight_transfer_engine", {"init_info": {"folder": str(tmp_path / "nowhere")}})
    assert (status, "this server sees no directory" in text) == (500, True)

    assert server.post("/start_weight_update", {})[0] == 200
    status, text = server.post("/finish_weight_update", {})
    assert (status, "of the model's parameters got no weights" in text) == (500, True)
    sampler.load_weights(model)  # though the server believes itself in the middle of that update
    assert_agrees(sampler.sample(make_requests(), PARAMS), model)


@needs_vllm
def test_where_a_reload_leaves_the_head_behind_the_probe_tells(real, running):
    """A tied mixture on a CPU: vLLM's reload does not reach the packed copies of head and experts."""
    model = make_policy(tied=True)
    sampler = running(model, real["tied"], silence=60.0)
    (server,) = sampler._servers
    server._transfers = False
    perturb(model)
    with pytest.raises(FastflowError, match=r"they do not hold the same model: .* install fastflow beside vLLM"):
        sampler.load_weights(model)
    server._transfers = True
    sampler.load_weights(model)
    assert_agrees(sampler.sample(make_requests(), PARAMS), model)


@needs_vllm
def test_a_training_run_one_step_ahead(real, tmp_path):
    """What `fastflow train` does: two servers, weights after every step, and a lag that the metrics show."""
    save_model(tmp_path / "model", family="qwen3", tied=False, head_dim=HEAD_DIM)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(10)))
    settings = {
        "model.path": tmp_path / "model",
        "model.device": "cpu",
        "data.path": prompts,
        "rollout.engine": "vllm-server",
        "rollout.servers": [real["untied"].address, real["reloading"].address],
        "rollout.ahead": 1,
        "rollout.max_response_tokens": 6,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 3,
        "optim.lr": 1e-2,
        "objective.alpha": 2,
        "run.steps": 3,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }
    train(read_config([f"--{name}={value}" for name, value in settings.items()])[0], Console(quiet=True))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["weight_lag"] for line in metrics] == [0, 1, 1]
    assert metrics[0]["mismatch_max"] < 1e-4 < metrics[1]["mismatch_max"]


@needs_vllm
def test_a_judge_whose_replies_are_no_grades(real, tmp_path, monkeypatch):
    """A model of random weights: each reply is kept, counted and read as no grade, and none is asked twice."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    settings = JudgeConfig(
        address=f"{real['reloading'].address}/v1", votes=2, temperature=0.7, max_tokens=9, concurrency=4
    )
    rows = [[{"question": 0, "sample": n, "prompt": "ab", "response": text} for n, text in enumerate(("cd", "ef"))]]
    rubric, file = find_rubric("poem"), tmp_path / "replies.jsonl"
    judge = JudgeModel(settings)
    assert judge.model == "policy"
    found = grade_quality(judge, rubric, rows, ReplyLog(file))
    assert found.quality == [None] and set(found.criteria) == set(rubric.names)
    asked = 2 * 2 * 2  # responses, votes, and once more with a reminder
    assert (found.cost.ungraded, found.cost.requests, found.cost.new) == (4, asked, asked)
    assert 0 < found.cost.completion_tokens <= 9 * asked and found.cost.prompt_tokens > 0
    again = grade_quality(judge, rubric, rows, ReplyLog(file))
    assert again.cost.new == 0 and again.cost.as_json() == found.cost.as_json()


@needs_vllm
def test_a_judge_that_refuses_is_quoted(real, tmp_path, monkeypatch):
    """judge.max_tokens is over its context."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    rows = [[{"question": 0, "sample": 0, "prompt": "ab", "response": "cd"}]]
    judge = JudgeModel(JudgeConfig(address=f"{real['reloading'].address}/v1"))
    with pytest.raises(
        FastflowError, match=r"refused 1 request and answered none; it answered .* with 400: max_tokens=1024 cannot"
    ):
        grade_quality(judge, find_rubric("poem"), rows, ReplyLog(tmp_path / "replies.jsonl"))


@needs_vllm
def test_of_two_real_servers_one_is_killed(real, running, caplog):
    """The last test: afterwards one of the servers is gone."""
    model = make_policy(tied=False)
    doomed = real["reloading"]
    sampler = running(model, real["untied"], doomed, max_sequences=4, silence=60.0)
    requests = make_requests(responses=16)
    whole = sampler.sample(requests, PARAMS)
    sampler.begin(requests, PARAMS)
    doomed.kill()
    survived = sampler.finish()
    assert_same_responses(whole, survived)
    assert_agrees(survived, model)
    perturb(model)
    sampler.load_weights(model)
    assert_agrees(sampler.sample(requests, PARAMS), model)
    assert f"the server at {doomed.address} does not answer" in caplog.text
