"""Tells a path of this machine from an id of a hub, by its form."""

from __future__ import annotations

import os


def is_path(place: str) -> bool:
    """Whether this can only be a path: ids of a hub have one slash at most, and begin with a letter or a digit."""
    return os.path.isabs(place) or place.startswith((".", "~")) or place.count("/") > 1
