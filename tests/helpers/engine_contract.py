"""What every engine owes, whoever runs it: the embedded one, vLLM in a process of its own, and servers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastflow.data.trajectory import Group, flatten
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request, Sampler, SamplingParams
from vllm_runs import PARAMS, assert_agrees, perturb


def assert_whole(
    groups: list[Group], requests: list[Request], *, version: int, params: SamplingParams = PARAMS, ends=(0,)
) -> None:
    """In the order of the requests, with their seeds; each response ends with an end token, otherwise at the limit."""
    assert [group.prompt for group in groups] == [request.prompt for request in requests]
    assert [[entry.seed for entry in group.trajectories] for group in groups] == [[*one.seeds] for one in requests]
    for trajectory in flatten(groups):
        ended = trajectory.response_ids[-1] in ends
        assert trajectory.finish_reason == ("stop" if ended else "length")
        assert ended or len(trajectory) == params.max_response_tokens
        assert not np.isin(trajectory.response_ids[:-1], ends).any()
        assert trajectory.weight_version == version


def assert_stopped(groups: list[Group], spelled: Callable[[np.ndarray], str], stops: tuple[str, ...]) -> None:
    """The token that completes a stop text is the response's last."""
    for trajectory in flatten(groups):
        text, before = spelled(trajectory.response_ids), spelled(trajectory.response_ids[:-1])
        ends = trajectory.response_ids[-1] == 0 or any(stop in text for stop in stops)
        assert trajectory.finish_reason == ("stop" if ends else "length")
        assert not any(stop in before for stop in stops)


def assert_no_shorter(groups: list[Group], least: int) -> None:
    """No end before the fewest tokens."""
    assert all(0 not in trajectory.response_ids[:least] for trajectory in flatten(groups))


def check_that_weights_are_followed(
    sampler: Sampler, model: PackedModel, requests: list[Request], finished: list[int], same: Callable[..., None]
) -> list[Group]:
    """Before and after an optimiser-like change in place, of which only load_weights tells.

    finished: what the sampler's on_progress is told. same: what two draws of the same seeds have in common. Returns all
    that was drawn from either weights.
    """
    first = sampler.sample(requests, PARAMS)
    assert_agrees(first, model)
    assert_whole(first, requests, version=0)
    assert sum(finished) == len(flatten(first)) == 24
    same(first, sampler.sample(requests, PARAMS))

    perturb(model)
    sampler.load_weights(model)
    second = sampler.sample(requests, PARAMS)
    assert_agrees(second, model)
    assert_whole(second, requests, version=1)
    assert sum(finished) == 72
    return [*first, *second]
