"""The watch begins before ranks meet where the launcher has their store, and a collective then waits without end."""

from __future__ import annotations

import contextlib

import pytest
import torch.distributed as dist

from fastflow.config.schema import Config, ModelConfig, RolloutConfig, RunConfig
from fastflow.errors import FastflowError
from fastflow.models.ranks import PATIENCE, Ranks
from fastflow.train.ranks import launch, meeting

LAUNCHED = {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def order(monkeypatch):
    """What happens, and with which timeout ranks meet."""
    happened: list[object] = []

    @contextlib.contextmanager
    def watched(config, ranks):
        happened.append("watch")
        try:
            yield
        finally:
            happened.append("end")

    monkeypatch.setattr(meeting, "watched", watched)
    monkeypatch.setattr(launch, "join", lambda *, on_cuda, timeout: happened.append(timeout))
    return happened


def begin(store: str, **rollout) -> tuple[Config, Ranks]:
    config = Config(model=ModelConfig(device="cpu"), run=RunConfig(replicas=2), rollout=RolloutConfig(**rollout))
    with meeting.meeting(config, {**LAUNCHED, "TORCHELASTIC_USE_AGENT_STORE": store}) as met:
        return met


def test_the_watch_comes_first_and_alone_says_who_hangs(order):
    config, ranks = begin("True")
    assert order == ["watch", PATIENCE, "end"]
    assert ranks == Ranks(2, 4, 2) and config.model.device == "cpu"


@pytest.mark.parametrize(("silence", "wait"), [(300.0, 2100.0), (1.0, 904.0)])
def test_without_the_launchers_store_a_wait_covers_every_restart_of_an_engine(order, silence, wait):
    begin("False", startup=900.0, silence=silence, restarts=3)
    assert order == [wait, "watch", "end"]


def test_ranks_that_do_not_meet_are_watched_no_longer(order, monkeypatch):
    def refuse(**_):
        raise FastflowError("no")

    monkeypatch.setattr(launch, "join", refuse)
    with pytest.raises(FastflowError, match="no"):
        begin("True")
    assert order == ["watch", "end"]


def test_one_rank_meets_nobody():
    config = Config()
    with meeting.meeting(config, {}) as met:
        assert met == (config, Ranks())
    assert not dist.is_initialized()
