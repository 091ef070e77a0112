"""The time that ranks spend together, from their first sign to the end of the run, watched for ranks that hang."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from fastflow.config.schema import Config
from fastflow.models.ranks import PATIENCE, Ranks
from fastflow.train.ranks.launch import claim, longest_wait, meet
from fastflow.train.ranks.watch import watched


@contextlib.contextmanager
def meeting(config: Config, environment: Mapping[str, str] = os.environ) -> Iterator[tuple[Config, Ranks]]:
    """Meet the other ranks that torchrun started, and watch them during the block. Yields the settings of this rank,
    with its device. Where there is one rank, nothing happens.

    Where the launcher has the store at which ranks meet, the watch begins before they do, and alone says who hangs: a
    collective waits for whoever gives signs. Otherwise a meeting, and a collective, ends after the longest wait for an
    engine. Raises FastflowError for what one rank only can do, and where they do not meet.
    """
    ranks = claim(config, environment)
    with contextlib.ExitStack() as stack:
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
            stack.enter_context(watched(config, ranks))
            config = meet(config, ranks, timeout=PATIENCE)
        else:
            config = meet(config, ranks, timeout=longest_wait(config))
            stack.enter_context(watched(config, ranks))
        yield config, ranks
