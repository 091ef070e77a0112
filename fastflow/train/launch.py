"""How many processes a run is started with, as torchrun says it in their environment."""

from __future__ import annotations

import os

from fastflow.errors import FastflowError


def refuse_several_ranks() -> None:
    """Raise FastflowError where torchrun started more than one process: each would do the whole run."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks != "1":
        raise FastflowError(
            f"torchrun started {ranks} processes (WORLD_SIZE), but fastflow train runs on one device: each "
            "of them would do the whole run in the same directory; start it without torchrun"
        )
