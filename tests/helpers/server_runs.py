"""What the tests of server rollouts share: samplers that are closed, stand-ins that are ended, a changed policy."""

from __future__ import annotations

import importlib.util
import threading

import numpy as np
import pytest

import vllm_runs
from fake_vllm import response_to
from fastflow.data.trajectory import flatten
from fastflow.models.packed import PackedModel
from fastflow.rollout.server.sampler import ServerSampler

needs_httpx = pytest.mark.skipif(
    importlib.util.find_spec("httpx") is None, reason="needs httpx: pip install 'fastflow[server]'"
)


def needs_vllm(test):
    return vllm_runs.needs_vllm(needs_httpx(test))


def make_requests(prompts: int = 4, responses: int = 6):
    return vllm_runs.make_requests(np.random.default_rng(0), prompts, responses)


def start(model: PackedModel, *servers, **options) -> ServerSampler:
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    return ServerSampler(
        model, **{"eos_ids": [0], "context": 40, "servers": addresses, "max_sequences": 4, "silence": 30.0, **options}
    )


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


def assert_same_responses(first, second) -> None:
    for one, two in zip(flatten(first), flatten(second), strict=True):
        assert (one.seed, one.finish_reason) == (two.seed, two.finish_reason)
        np.testing.assert_array_equal(one.response_ids, two.response_ids)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("fastflow", "asyncio"))]
