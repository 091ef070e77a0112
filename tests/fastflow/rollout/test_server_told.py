"""What the user is told of servers that refuse: which prompt it was, and that they are busy, while it lasts too."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fake_vllm import FakeServer
from fastflow.data.trajectory import Prompt, name_of
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request
from fastflow.rollout.server.http import Backoff
from server_runs import assert_answered, make_requests, needs_httpx
from small_models import make_causal_lm
from vllm_runs import PARAMS

POISON = [7, 13, 7]
NAME = r'prompts\.jsonl:4 \("poisonous words"\)'


@pytest.fixture
def model() -> PackedModel:
    return PackedModel(make_causal_lm())


def with_poison() -> list[Request]:
    prompts = [Prompt(np.array([1 + place]), "harmless", source=f"prompts.jsonl:{place + 1}") for place in range(6)]
    prompts[3] = Prompt(np.array(POISON), "poisonous\nwords", source="prompts.jsonl:4")
    return [Request(prompt, (2 * place, 2 * place + 1)) for place, prompt in enumerate(prompts)]


def fail(fake: FakeServer, failure: object) -> None:
    """At the poisonous prompt alone. failure: see FakeServer.completion, or a function that is called."""
    fake.completion = lambda body: (failure() if callable(failure) else failure) if body["prompt"] == POISON else None


def test_a_prompt_is_named_by_its_place_and_its_first_words():
    ids = np.array([5])
    assert name_of(Prompt(ids), 3) == "prompt 3"
    assert name_of(Prompt(ids, " one\n\ttwo "), 3) == 'prompt 3 ("one two")'
    assert name_of(Prompt(ids, "word " * 100, source="a.jsonl:9"), 3) == f'a.jsonl:9 ("{"word " * 11}word...")'


@needs_httpx
def test_a_refused_prompt_is_named(model, fakes, running):
    fake = fakes()
    fail(fake, 400)
    refused = rf"answered POST /v1/completions with 400: .*, or, if other prompts are answered, remove {NAME}$"
    with pytest.raises(FastflowError, match=refused):
        running(model, fake).sample(with_poison(), PARAMS)


@needs_httpx
def test_a_prompt_whose_answer_cannot_be_used_is_named(model, fakes, running):
    fake = fakes()
    choice = {"token_ids": [99, 0], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": "stop"}
    fail(fake, {"choices": [choice]})
    with pytest.raises(FastflowError, match=f"with token 99, .* remove {NAME}$"):
        running(model, fake).sample(with_poison(), PARAMS)


@needs_httpx
def test_a_prompt_that_always_fails_is_named_at_once_and_in_the_end(model, fakes, running, caplog):
    fake = fakes()
    fail(fake, 500)
    with pytest.raises(FastflowError, match=f"2 of 12 responses missing: .*500.*asked most often first: {NAME}; check"):
        running(model, fake, silence=1.0).sample(with_poison(), PARAMS)
    (warning,) = [record.getMessage() for record in caplog.records if "its requests go to" in record.getMessage()]
    assert 'with 500: as the test wants it, asked for prompts.jsonl:4 ("poisonous words"); its' in warning


@needs_httpx
def test_a_prompt_at_which_the_server_hangs_is_named(model, fakes, running):
    """It is asked again where the others are answered."""
    fake, released = fakes(), threading.Event()
    fail(fake, lambda: released.wait(30) and None)
    try:
        with pytest.raises(FastflowError, match=f"2 of 12 responses missing: .*most often first: {NAME}; check"):
            running(model, fake, silence=1.0).sample(with_poison(), PARAMS)
    finally:
        released.set()


@needs_httpx
def test_of_many_unanswered_prompts_a_few_are_named(model, fakes, running):
    fake = fakes()
    fake.completion = lambda body: 500
    with pytest.raises(FastflowError, match=r"first: prompts.*?\), prompts.*?\), prompts.*?\) and 3 others; check"):
        running(model, fake, silence=1.0, max_sequences=12).sample(with_poison(), PARAMS)


@needs_httpx
@pytest.mark.parametrize("status", [429, 503])
def test_servers_that_stay_busy_end_the_run_with_what_helps(status, model, fakes, running, caplog, monkeypatch):
    """They are told while they are busy, and asked more and more rarely, however many requests they refuse at once."""
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.1, 0.4))
    fake, requests = fakes(), make_requests()
    fake.completion = lambda body: status
    sampler = running(model, fake, silence=2.0, max_sequences=8)
    with pytest.raises(FastflowError) as error:
        sampler.sample(requests, PARAMS)
    answered = f"the server at {fake.address} answered POST /v1/completions with {status}: as the test wants it"
    assert f"no server has made progress for 2 seconds, with 24 of 24 responses missing: {answered}; " in str(
        error.value
    )
    assert str(error.value).endswith("they are busy: lower rollout.max_sequences, leave them to this run, or raise "
                                     "rollout.silence")  # fmt: skip
    assert len(fake.bodies) <= 8 * 16  # of 8 together, in pauses of at least 0.05, 0.1 and then 0.2 seconds
    told = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith(f"{answered}, asked for prompt ") for message in told) == 1
    still = [message for message in told if message.startswith("no server has made progress for 0.")]
    assert still and still[0].endswith(f"seconds: {answered}; after 2 (rollout.silence) it is an error")
    assert len(still) == 1

    fake.completion = lambda body: None
    assert_answered(sampler.sample(requests, PARAMS), requests)


@needs_httpx
def test_servers_that_are_busy_for_less_than_the_silence_cost_time_alone(model, fakes, running):
    fake, requests = fakes(), make_requests()
    fake.completion = lambda body: 503 if len(fake.bodies) <= 16 else None
    assert_answered(running(model, fake, max_sequences=8).sample(requests, PARAMS), requests)


@needs_httpx
def test_a_server_that_is_busy_before_it_shows_its_weights_is_told(model, fakes, running, caplog):
    fake = fakes()
    sampler = running(model, fake, silence=1.0)
    fake.errors = {"/health": (503, "too much to do")}
    with pytest.raises(FastflowError, match=r"24 of 24 responses missing: .*503: too much to do; check the servers"):
        sampler.sample(make_requests(), PARAMS)
    assert "no server has made progress for 0." in caplog.text
    with pytest.raises(FastflowError, match=r"no server took the weights within 1 seconds: .*503: too much to do; "):
        sampler.load_weights(model)


@needs_httpx
def test_of_a_busy_server_and_a_dead_one_both_are_told(model, fakes, running):
    busy, dead = fakes(), fakes()
    sampler = running(model, busy, dead, silence=1.0)
    busy.completion = lambda body: 503
    dead.die()
    with pytest.raises(FastflowError, match=f"{dead.address} does not answer .*{busy.address} .*503.*; check the serv"):
        sampler.sample(make_requests(), PARAMS)
