"""Digests of what decides a result, by which files and lines that hold it are found again."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def key_of(content: Any) -> str:
    """A digest of settings, texts or a request, in JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
