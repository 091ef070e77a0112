"""Deal the responses of a step to ranks that sample them with engines of their own, and put them together again.

The rule for every engine that works while the policy trains: collectives, dealing and exchange among them, are entered
by the main thread alone, in `begin`, `finish` and `load_weights`. What goes on in between, in another process or
thread, enters none. So all ranks enter them in one order, whatever their engines do meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.models.ranks import Ranks
from fastflow.rollout.sampler import Request


def share_of(requests: Sequence[Request], ranks: Ranks) -> list[Request]:
    """Return this rank's part of the requests: a run of their responses, so that most of a prompt's stay together.

    The parts are as equal as can be. A request of which the rank has no response is left out.
    """
    if ranks.count == 1:
        return list(requests)
    total = sum(len(request.seeds) for request in requests)
    first, end = (place * total // ranks.count for place in (ranks.rank, ranks.rank + 1))
    share, before = [], 0
    for request in requests:
        seeds = request.seeds[max(first - before, 0) : max(end - before, 0)]
        before += len(request.seeds)
        if seeds:
            share.append(replace(request, seeds=seeds))
    return share


def exchange(requests: Sequence[Request], own: Sequence[Group], ranks: Ranks) -> list[Group]:
    """Return the groups of all requests, given those of share_of on each rank. A collective."""
    if ranks.count == 1:
        return list(own)
    responses: list[Trajectory] = [one for of_rank in ranks.gather(flatten(own)) for one in of_rank]
    trajectories = iter(responses)
    return [Group(request.prompt, tuple(next(trajectories) for _ in request.seeds)) for request in requests]
