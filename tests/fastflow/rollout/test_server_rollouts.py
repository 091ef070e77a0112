"""Rollouts on servers over HTTP, against a stand-in: what is asked and answered, and servers that fail."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest

from fake_vllm import response_to
from fastflow.data.trajectory import Prompt, flatten
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.server import dispatch
from fastflow.rollout.server import sampler as server_sampler
from fastflow.rollout.server.sampler import read_addresses
from server_runs import make_requests, needs_httpx, our_threads, start
from small_models import make_causal_lm
from vllm_runs import PARAMS, perturb


def assert_answered(groups, requests) -> None:
    """By the stand-in, each with its own prompt and seed."""
    assert [group.prompt for group in groups] == [request.prompt for request in requests]
    for group, request in zip(groups, requests, strict=True):
        for trajectory, seed in zip(group.trajectories, request.seeds, strict=True):
            body = {"prompt": request.prompt.ids.tolist(), "seed": seed, "max_tokens": 12, "stop_token_ids": [0]}
            (choice,) = response_to(body)["choices"]
            assert trajectory.response_ids.tolist() == choice["token_ids"]
            np.testing.assert_allclose(trajectory.behaviour_logprobs, choice["logprobs"]["token_logprobs"], rtol=1e-6)
            assert trajectory.seed == seed


@pytest.fixture
def model() -> PackedModel:
    return PackedModel(make_causal_lm())


# What is asked and answered


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
        ({"logprobs": {"token_logprobs": [-1.0, 2.5]}}, r"reach 2\.5, .* --logprobs-mode processed_logprobs"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "reach nan, .* --logprobs-mode processed_logprobs"),
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


# Servers that fail


@needs_httpx
@pytest.mark.parametrize("failure", [429, 503, 500, "abort"])
def test_a_failed_request_is_asked_again_with_its_seed(failure, model, fakes, running):
    fake = fakes()

    def fail_twice(body):
        if len(fake.bodies) > 2:
            return None
        return failure if isinstance(failure, int) else response_to(body, finish_reason=failure)

    fake.completion = fail_twice
    sampler = running(model, fake)
    fake.paths.clear()
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    asked = fake.paths.count("/weight_info")
    assert asked == 2 if failure in (429, 503) else asked > 2  # the others may have changed its weights


@needs_httpx
def test_the_others_take_over_from_a_server_that_dies(model, fakes, running, caplog):
    here, there = fakes(), fakes()
    there.completion = lambda body: there.die() if len(there.bodies) > 3 else None
    sampler = running(model, here, there)
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert f"the server at {there.address} does not answer" in caplog.text
    assert "its requests go to whichever server answers" in caplog.text

    there.completion = lambda body: None
    there.start()
    perturb(model)
    sampler.load_weights(model)
    there.bodies.clear()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert there.bodies


@needs_httpx
def test_a_server_that_comes_back_in_the_middle_first_takes_the_weights(model, fakes, running):
    """The only server: the round waits for it. Restarted, it holds other weights, and must not serve with them."""
    fake = fakes()

    def die(body):
        fake.completion = lambda body: None
        fake.die()
        threading.Timer(0.3, fake.start).start()

    sampler = running(model, fake)
    fake.completion = die
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert fake.tags_served == {sampler._weights.tag}


@needs_httpx
def test_a_server_that_is_missing_at_a_load_is_left_out(model, fakes, running, caplog):
    here, there = fakes(), fakes()
    there.die()
    sampler = running(model, here, there)
    assert f"the server at {there.address} does not answer /health" in caplog.text
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert not there.bodies


@needs_httpx
def test_a_server_that_hangs_at_a_load_keeps_nobody_waiting(model, fakes, running, monkeypatch, caplog):
    monkeypatch.setattr(server_sampler, "OTHERS_SECONDS", 0.2)
    monkeypatch.setattr(dispatch, "HEAD_START", 0.2)
    requests, started = make_requests(), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as hung:
        address = f"http://127.0.0.1:{hung.getsockname()[1]}"
        sampler = running(model, fakes(), address, silence=4.0)
        sampler.load_weights(model)
        assert_answered(sampler.sample(requests, PARAMS), requests)
        sampler.close()
    assert time.monotonic() - started < 3
    assert f"the server at {address} is slower than others to take the weights" in caplog.text


@needs_httpx
def test_another_run_at_the_same_server_is_told(model, fakes, running):
    fake = fakes()
    sampler = running(model, fake)
    fake.completion = lambda body: fake.become("fastflow-other-0") if len(fake.bodies) == 9 else None
    with pytest.raises(FastflowError, match=f"another run changed the weights of the server at {fake.address} during"):
        sampler.sample(make_requests(), PARAMS)


@needs_httpx
@pytest.mark.parametrize("failure", [None, 500])
def test_what_a_restarted_server_answered_is_asked_again(failure, model, fakes, running):
    """Restarted between two requests, so that only its weights tell; by the round's end or by the next failure."""
    fake, counts, served = fakes(), [], []

    def complete(body):
        if len(fake.bodies) == 9:
            fake.become("default")
        served.append((fake.tag, tuple(body["prompt"]), body["seed"]))
        return failure if len(fake.bodies) == 15 else None

    fake.completion = complete
    sampler = running(model, fake, max_sequences=1, on_progress=counts.append)
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    assert sum(counts) == 24
    ours = [job for tag, *job in served if tag == sampler._weights.tag]
    assert len(ours[8:]) == 24
    assert len(served) - len(ours) == (7 if failure else 16)


@needs_httpx
def test_a_hung_server_is_told_from_a_slow_one(model, fakes, running, caplog):
    """Both finish nothing for longer than the silence, but one generates."""
    slow, hung, released = fakes(), fakes(), threading.Event()

    def take_long(body):
        for _ in range(30):
            time.sleep(0.1)
            slow.tokens += 1

    slow.completion = take_long
    hung.completion = lambda body: released.wait(60) and None
    sampler = running(model, slow, hung, silence=1.5, max_sequences=256)
    requests = make_requests(prompts=2, responses=2)
    try:
        assert_answered(sampler.sample(requests, PARAMS), requests)
    finally:
        released.set()
    assert f"the server at {hung.address} has given no sign of life for 1.5 seconds" in caplog.text
    assert f"the server at {slow.address} has given no sign" not in caplog.text


@needs_httpx
def test_when_all_are_dead_the_run_ends_with_their_last_words(model, fakes, running):
    here, there = fakes(), fakes()
    here.completion = there.completion = lambda body: here.die() or there.die()
    sampler = running(model, here, there, silence=1.0)
    with pytest.raises(FastflowError, match="no server has made progress for 1 seconds, with 24 of 24") as error:
        sampler.sample(make_requests(), PARAMS)
    assert here.address in str(error.value)
    assert there.address in str(error.value)
    assert "raise rollout.silence" in str(error.value)
    with pytest.raises(FastflowError, match=r"no server took the weights within 1 seconds: .* check rollout\.servers"):
        sampler.load_weights(model)


@needs_httpx
def test_ctrl_c_cancels_and_the_sampler_can_go_on(model, fakes, running):
    fake, released = fakes(), threading.Event()
    fake.completion = lambda body: released.wait(60) and None
    sampler = running(model, fake)
    sampler.begin(make_requests(), PARAMS)
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        sampler.finish()
    interrupt.join()
    sent = len(fake.bodies)
    released.set()
    time.sleep(0.2)
    assert len(fake.bodies) == sent == 4  # none of those that waited went out

    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    fake.completion = lambda body: time.sleep(30)
    sampler.begin(requests, PARAMS)
    sampler.close()
    sampler.close()
    assert not our_threads()


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
