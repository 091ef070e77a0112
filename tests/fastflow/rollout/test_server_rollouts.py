"""Rollouts on servers over HTTP, against a stand-in: what is asked and answered."""

from __future__ import annotations

import logging
import sys
import threading

import numpy as np
import pytest

from fastflow.data.trajectory import Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.server.sampler import read_addresses
from server_runs import assert_answered, make_requests, needs_httpx, our_threads, start
from vllm_runs import PARAMS, perturb


@needs_httpx
@pytest.mark.parametrize("transfers", [True, False])
def test_groups_come_in_order_from_the_weights_last_loaded(transfers, model, fakes, running, caplog):
    caplog.set_level(logging.INFO, "fastflow")
    fake, counts, threads = fakes(transfers=transfers), [], set()

    def on_progress(count):
        counts.append(count)
        threads.add(threading.current_thread())

    sampler = running(model, fake, on_progress=on_progress)
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    perturb(model)
    sampler.load_weights(model)
    groups = sampler.sample(requests, PARAMS)
    assert_answered(groups, requests)
    assert {trajectory.weight_version for trajectory in flatten(groups)} == {1}
    assert sum(counts) == 48
    assert threads == {threading.main_thread()}
    assert len(fake.tags_served) == 2
    assert ("/collective_rpc" in fake.paths) is not transfers
    way = "its weight-transfer API" if transfers else "reload_weights"
    assert caplog.text.count(f"the server at {fake.address} runs vLLM fake and takes weights by {way}") == 1


@needs_httpx
def test_a_proxy_is_not_for_these_servers(model, fakes, running, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    requests = make_requests()
    assert_answered(running(model, fakes()).sample(requests, PARAMS), requests)


@needs_httpx
def test_a_request_says_all_that_shapes_the_distribution(model, fakes, running, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    fake = fakes()
    sampler = running(model, fake, eos_ids=[3, 0])
    params = SamplingParams(
        temperature=0.5, top_p=0.9, max_response_tokens=7, min_response_tokens=2, stop=("ab", "c"),
    )  # fmt: skip
    sampler.sample([Request(Prompt(np.array([5, 6])), (11,))], params)
    (body,) = fake.bodies
    expected = {
        "model": "policy", "prompt": [5, 6], "seed": 11, "max_tokens": 7, "min_tokens": 2, "temperature": 0.5,
        "top_p": 0.9, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0,
        "stop": ["ab", "c"], "stop_token_ids": [0, 3], "ignore_eos": True, "logprobs": 0, "return_token_ids": True,
        "skip_special_tokens": False, "spaces_between_special_tokens": False,
    }  # fmt: skip
    assert body == expected
    assert fake.authorization == "Bearer secret"


@needs_httpx
def test_requests_go_to_the_server_with_the_fewest(model, fakes, running):
    here, there = fakes(), fakes()
    sampler = running(model, here, there, max_sequences=256)
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert len(here.bodies) == len(there.bodies) == 12


@needs_httpx
def test_begin_returns_while_the_servers_still_work(model, fakes, running):
    fake, released = fakes(), threading.Event()
    fake.completion = lambda body: released.wait(30) and None
    sampler = running(model, fake)
    requests = make_requests()
    sampler.begin(requests, PARAMS)
    assert not released.is_set()
    released.set()
    assert_answered(sampler.finish(), requests)


@needs_httpx
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"logprobs": {"token_logprobs": [-1.0]}}, "1 log-probs for 2 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0, 2.5]}}, r"log-prob of 2\.5, .* --logprobs-mode processed_logprobs"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "log-prob of nan, .* --logprobs-mode"),
        ({"logprobs": {"token_logprobs": [-1.0, -float("inf")]}}, "log-prob of -inf, .* --logprobs-mode"),
        (
            {"token_ids": [10**6, 0]},
            "with token 1000000, and the policy's are 0 to .*; serve the model that is trained",
        ),
        ({"token_ids": [-5, 0]}, "with token -5, "),
        ({"token_ids": [3.7, 0]}, "with token 3.7, "),
        ({"token_ids": [5] * 99, "logprobs": {"token_logprobs": [-1.0] * 99}}, r"of 99 tokens where \d+ are the most"),
        ({"logprobs": None}, "without token ids and their log-probs; fastflow needs vLLM 0.32"),
        ({"token_ids": None}, "without token ids and their log-probs"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "0 log-probs for 0 tokens"),
        ({"token_ids": [5, 6]}, "ended at token 6, .* start it with --generation-config vllm"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(answer, message, model, fakes, running):
    fake = fakes()
    choice = {"token_ids": [5, 0], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "stop"}
    fake.completion = lambda body: {"choices": [choice | answer]}
    sampler = running(model, fake)
    with pytest.raises(FastflowError, match=f"the server at {fake.address} gave a response .*{message}"):
        sampler.sample(make_requests(), PARAMS)


@needs_httpx
@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_is_none_is_refused_at_once(key, model, fakes, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(FastflowError, match="VLLM_API_KEY holds characters that no key has") as refused:
        start(model, fakes())
    assert key not in str(refused.value)
    assert not our_threads()


@needs_httpx
@pytest.mark.parametrize("models", [[], [{}], None, "policy", [{"id": "policy", "max_model_len": "long"}]])
def test_a_server_that_names_no_model_is_told(models, model, fakes):
    fake = fakes()
    fake.models = models
    with pytest.raises(FastflowError, match=f"the server at {fake.address} names no model: .*check that vLLM listens"):
        start(model, fake)


@needs_httpx
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/weight_info", (404, "Not Found"), "needs vLLM 0.32, started with VLLM_SERVER_DEV_MODE=1"),
        ("/v1/models", (401, "Unauthorized"), "environment variable VLLM_API_KEY"),
        (
            "/update_weights",
            (500, "collective_rpc method failed: size mismatch"),
            "size mismatch; check that",
        ),
        (
            "/init_weight_transfer_engine",
            (500, "collective_rpc method failed: 'fastflow: this server sees no directory /x'"),
            r"does not see the weights in .*; set rollout\.shared_folder",
        ),
    ],
)
def test_a_server_that_cannot_take_weights_says_why(path, error, message, model, fakes):
    fake = fakes()
    fake.errors[path] = error
    with pytest.raises(FastflowError, match=message):
        start(model, fake)
    assert not our_threads()


@needs_httpx
def test_what_does_not_fit_the_server_is_said_at_the_start(model, fakes):
    with pytest.raises(FastflowError, match=r"has room for 39 tokens, .* need 40; start it with --max-model-len 40"):
        start(model, fakes(room=39))
    other = fakes()
    other.errors["/health"] = (200, "")
    other.errors["/weight_info"] = (200, "")
    with pytest.raises(FastflowError, match="answered GET /weight_info without weight_version; check that vLLM"):
        start(model, other)


@needs_httpx
@pytest.mark.parametrize("transfers", [True, False])
def test_other_weights_than_the_trainers_stop_the_run(transfers, model, fakes, running):
    fake = fakes(transfers=transfers)
    sampler = running(model, fake)
    fake.stale_head = True
    perturb(model)
    with pytest.raises(FastflowError, match=f"after weight load 1, the server at {fake.address} gives token") as error:
        sampler.load_weights(model)
    assert "start it with --dtype float32" in str(error.value)
    assert ("install fastflow beside vLLM on that server" in str(error.value)) is not transfers


@needs_httpx
def test_prompts_are_checked_before_anything_is_sent(model, fakes, running):
    fake = fakes()
    sampler = running(model, fake)
    with pytest.raises(FastflowError, match="prompt 1 holds token 40, but the model's head has 40 rows"):
        sampler.begin([Request(Prompt(np.array([40])), (0,))], PARAMS)
    assert not fake.bodies


@needs_httpx
def test_finish_comes_after_begin(model, fakes, running):
    sampler = running(model, fakes())
    with pytest.raises(RuntimeError, match=r"finish\(\) needs a begin\(\)"):
        sampler.finish()


def test_addresses_are_read_as_users_write_them(model):
    assert read_addresses(["http://a:8000/v1/", "a:8000", "https://b"]) == ["http://a:8000", "https://b"]
    for wrong in ("ftp://a", "", "a:99999", "a:abc", "http://[::1", "a b:8000", "a:80\n00"):
        with pytest.raises(FastflowError, match=r"rollout\.servers holds .*, which is no address; write it as host"):
            read_addresses([wrong])
    with pytest.raises(FastflowError, match=r"rollout\.servers is empty"):
        start(model)


def test_without_httpx_the_package_to_install_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(FastflowError, match=r"needs the package httpx: pip install \"fastflow\[server\]\""):
        start(model, "http://localhost:1")
