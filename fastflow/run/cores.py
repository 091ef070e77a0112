"""Counts the cores that this process may use: a container or a batch system may give it fewer than the machine has."""

from __future__ import annotations

import os


def cores() -> int:
    """Return how many, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
