"""Fixtures of the trainer's tests."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fake_vllm import FakeServer
from fastflow.rollout.server.sampler import ServerSampler
from server_runs import our_threads, start
from small_models import save_model


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command line configures logging for its process; a test must not leave that to the next."""
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    yield
    root.handlers[:] = handlers
    logging.getLogger("fastflow").setLevel(logging.NOTSET)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def model_directory(tmp_path):
    """A saved model with a tokenizer over single letters and digits."""
    return save_model(tmp_path / "model")


@pytest.fixture
def fakes():
    """Makes stand-ins, and ends them."""
    made = []

    def make(**options) -> FakeServer:
        made.append(FakeServer(**options))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def running():
    """Starts samplers, closes them, and sees that nothing stays behind."""
    started = []

    def run(*arguments, **options) -> ServerSampler:
        started.append(start(*arguments, **options))
        return started[-1]

    yield run
    for sampler in started:
        sampler.close()
        assert not sampler._folder.path.exists()
    assert not our_threads()
