"""Rollouts on servers that fail, hang, restart or come back, against stand-ins."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from fake_vllm import response_to
from fastflow.errors import FastflowError
from fastflow.rollout.server import dispatch
from fastflow.rollout.server import sampler as server_sampler
from server_runs import assert_answered, make_requests, needs_httpx, our_threads
from vllm_runs import PARAMS, perturb


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
def test_a_server_whose_probe_never_ends_is_named(model, fakes, running):
    """Its workers hang, but its front answers."""
    fake, released = fakes(), threading.Event()
    sampler = running(model, fake, silence=1.0)
    fake.before_probe = released.wait
    perturb(model)
    limit = threading.Timer(15, released.set)  # so that a wait without an end fails this test
    limit.start()
    try:
        with pytest.raises(FastflowError, match=rf"{fake.address} does not answer /v1/completions .*rollout\.silence"):
            sampler.load_weights(model)
        assert not released.is_set()
    finally:
        limit.cancel()
        released.set()


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
@pytest.mark.parametrize("failure", [503, 500])
def test_a_request_that_always_fails_is_told_with_its_words(failure, model, fakes, running, caplog):
    fake, cursed = fakes(), []

    def fail_one(body):
        cursed[:] = cursed or [body["seed"]]
        return failure if [body["seed"]] == cursed else None

    fake.completion = fail_one
    sampler = running(model, fake, silence=1.5)
    with pytest.raises(FastflowError, match=rf"with 1 of 24 responses missing: .*{fake.address}.*{failure}") as error:
        sampler.sample(make_requests(), PARAMS)
    assert "silent" not in str(error.value)
    assert sum("its requests go to" in record.message for record in caplog.records) < 4 < len(fake.bodies) - 23


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
