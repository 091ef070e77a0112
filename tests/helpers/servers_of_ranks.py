"""What several ranks do with a vLLM server: the first rank runs a stand-in, which reads the weights it is given."""

from __future__ import annotations

import numpy as np
import pytest

from engine_of_ranks import change, make_policy
from fake_vllm import FakeServer
from fastflow.data.trajectory import flatten
from fastflow.errors import FastflowError
from fastflow.models.ranks import FailedElsewhere, Ranks
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.schedule import OneAhead
from fastflow.rollout.server import weights as server_weights
from fastflow.rollout.server.sampler import ServerSampler
from server_runs import assert_answered, make_requests, start

PARAMS = SamplingParams(max_response_tokens=12)


def all_of_servers(ranks: Ranks) -> None:
    fake = FakeServer() if ranks.is_first else None
    address = ranks.from_first(fake.address if fake else "")
    try:
        for check in (takes_weights, samples_ahead, cannot_write):
            check(ranks, address)
            ranks.max(0)
    finally:
        if fake is not None:
            fake.close()
    is_gone(ranks, address)


def takes_weights(ranks: Ranks, address: str) -> None:
    """The probe on the server agrees with the ranks, and its answers reach all of them."""
    server_weights.BUCKET_BYTES = 10_000  # several files
    for options in ({}, {"tied": False}, {"lora": True}):
        policy = make_policy(ranks, **options)
        sampler = start(policy, address)
        for _ in range(2):
            change(policy)
            sampler.load_weights(policy)
            requests = make_requests()
            groups = sampler.sample(requests, PARAMS)
            assert_answered(groups, requests)
            assert {one.weight_version for one in flatten(groups)} == {policy.version}
        sampler.close()
    server_weights.BUCKET_BYTES = 2**30


def samples_ahead(ranks: Ranks, address: str) -> None:
    policy = make_policy(ranks)
    sampler = start(policy, address)
    requests = {step: make_requests(step, 3) for step in (1, 2, 3)}
    schedule = OneAhead(sampler, policy, requests.__getitem__, PARAMS, steps=3)
    for step in (1, 2, 3):
        groups = schedule.groups(step)
        assert_answered(groups, requests[step])
        assert {one.weight_version for one in flatten(groups)} == {max(step - 2, 0)}
        change(policy)
    sampler.close()


def cannot_write(ranks: Ranks, address: str) -> None:
    """A full disk, in the middle of what all gather, ends all ranks at the same place."""
    policy = make_policy(ranks)
    sampler = start(policy, address)
    save, server_weights.BUCKET_BYTES = server_weights._save, 10_000

    def full(tensors, file) -> None:
        raise OSError(28, "No space left on device")

    server_weights._save = full
    fails(lambda: sampler.load_weights(policy), ranks, says="cannot write the weights to .*No space left")
    server_weights._save, server_weights.BUCKET_BYTES = save, 2**30
    sampler.load_weights(policy)
    requests = make_requests()
    assert_answered(sampler.sample(requests, PARAMS), requests)
    too_long = [*requests, *make_requests(1, 1)]
    too_long[-1].prompt.ids[:] = 40
    fails(lambda: sampler.sample(too_long, PARAMS), ranks, says="holds token 40")
    sampler.close()


def is_gone(ranks: Ranks, address: str) -> None:
    fails(lambda: start(make_policy(ranks), address, silence=0.5), ranks, says="no server took the weights")
    with pytest.raises(FastflowError, match="is no address"):
        ServerSampler(make_policy(ranks), eos_ids=[0], context=40, servers=["http://:0"])


def fails(act, ranks: Ranks, *, says: str) -> None:
    """All ranks end with what was refused on the first, or on all of them; the first speaks."""
    with pytest.raises(FastflowError, match=says) as caught:
        act()
    assert isinstance(caught.value, FailedElsewhere) != ranks.is_first
    assert caught.value.on_all_ranks and np.unique(ranks.gather(str(caught.value))).size == 1
