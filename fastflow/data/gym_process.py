"""The process that makes reasoning-gym's entries: a request in as JSON, entries out.

It has its own random state and an order of sets that its parent fixes (PYTHONHASHSEED): some data sets depend on both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from typing import Any


def main() -> int:
    """Serve one request: a list of name, settings and count."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # some data sets print
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with out:
        json.dump(answer(json.load(sys.stdin)), out)
    return 0


def answer(wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the entries of each, otherwise say what is unknown or refused."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    made = []
    for request in wanted:
        name, settings = request["name"], request["settings"]
        if name not in DATASETS:
            return {"unknown": name, "known": sorted(DATASETS)}
        try:
            source = reasoning_gym.create_dataset(name, **settings)
            made.append([_entry(source, name, settings, number) for number in range(request["count"])])
        except Exception as error:  # data sets check their settings by assertions, and some only when they generate
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            takes = [entry.name for entry in dataclasses.fields(DATASETS[name][1])]
            return {"refused": words, "name": name, "takes": takes}
    return {"entries": made}


def _entry(source: Any, name: str, settings: dict[str, Any], number: int) -> dict[str, Any]:
    random.seed(number)  # a few data sets draw from it beside their own generator
    entry = source[number]
    own = {key: value for key, value in settings.items() if key not in ("size", "seed")}
    return {"name": name, "settings": own, **{key: entry[key] for key in ("question", "answer", "metadata")}}


if __name__ == "__main__":
    sys.exit(main())
