"""Prompts and verified answers from reasoning-gym: `gym:NAME` or `gym:NAME+NAME`, made on this machine.

Entry i of a data set comes from seed + i, so that seeds nearer to each other than the size share entries.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import islice, zip_longest
from typing import Any

from fastflow.children import python_module, same_path
from fastflow.config.sections import GYM
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError

SIZE, SEED = 500, 0
ENTRY = "gym_entry"  # field of a record with what the verifier needs
INSTRUCTION = "\nPut the final answer within \\boxed{}."

Entry = dict[str, Any]


def names_in(path: str) -> list[str]:
    """The names in gym:NAME+NAME. Raises FastflowError for an empty one and for one that stands there twice."""
    found = path.removeprefix(GYM).split("+")
    if not all(found) or len({*found}) < len(found):
        raise FastflowError(f"{path} names an empty data set or one twice; write gym:NAME, or gym:NAME+NAME")
    return found


def make_entries(path: str, settings: Mapping[str, Any] | None, *, seed: int = SEED, limit: int = 0) -> Iterator[Entry]:
    """Make the entries of all data sets that `path` names, in turn: one of each, then the next of each.

    settings: size and seed (default: 500 entries of each data set, `seed`), what every named set takes, and under a
    set's name a mapping of what it alone takes. limit: make only the first N; 0 makes all. An entry has name, settings,
    question, answer and metadata, as JSON holds them. The same settings give the same entries in every process.
    Raises FastflowError where the package is missing, for unknown names, and with the library's own words for settings
    that it refuses.
    """
    if find_spec("reasoning_gym") is None:
        raise FastflowError(f'{path} needs the package reasoning_gym: pip install "fastflow[gym]"')
    wanted = [_request(path, name, dict(settings or {}), seed, limit) for name in names_in(path)]
    rounds = zip_longest(*_ask(path, wanted))
    return islice((entry for entries in rounds for entry in entries if entry is not None), limit or None)


def _request(path: str, name: str, settings: dict[str, Any], seed: int, limit: int) -> dict[str, Any]:
    own = settings.get(name, {})
    for other in names_in(path):
        if isinstance(settings.get(other), Mapping):
            del settings[other]
    merged = {"size": SIZE, "seed": seed, **settings, **(own if isinstance(own, Mapping) else {})}
    for key, least in (("size", 1), ("seed", 0)):
        value = merged[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise FastflowError(
                f"{path}: the setting {key} is {value!r}, but must be a whole number of at least {least}"
            )
    return {"name": name, "settings": merged, "count": min(merged["size"], limit or merged["size"])}


def _ask(path: str, wanted: list[dict[str, Any]]) -> list[list[Entry]]:
    """Have a process of its own make them, whose sets of Python have the same order every time."""
    done = subprocess.run(  # noqa: S603, our own module, and no shell
        python_module("fastflow.data.gym_process"),
        input=json.dumps(wanted), capture_output=True, encoding="utf-8", env=same_path(PYTHONHASHSEED="0"), check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FastflowError(f"reasoning-gym failed for {path} ({last[:300]}); choose other data sets or settings")
    answer = json.loads(done.stdout)
    if "unknown" in answer:
        raise FastflowError(f"{path}: reasoning-gym has no {answer['unknown']!r}: {_suggested(**answer)}")
    if "refused" in answer:
        raise FastflowError(
            f"{path}: reasoning-gym refuses {answer['name']} ({answer['refused'][:300]}); change its settings: it "
            f"takes {', '.join(answer['takes'])}"
        )
    made: list[list[Entry]] = answer["entries"]
    return made


def _suggested(unknown: str, known: list[str]) -> str:
    near = suggest(unknown, known)
    return near if near.startswith("did") else f"known are {', '.join(known)}"


def read_gym(path: str, prompt_field: str, settings: Mapping[str, Any] | None, suffix: str, limit: int) -> Iterator[
    tuple[str, dict[str, Any]]
]:  # fmt: skip
    """Make records of the entries, with their places. The instruction follows each question unless there is a suffix.

    A record has `prompt_field`, `answer` (which some data sets leave to their verifier: null) and ENTRY.
    """
    for number, entry in enumerate(make_entries(path, settings, limit=limit), start=1):
        record = {"answer": entry["answer"], ENTRY: entry}
        text = entry["question"] + ("" if suffix else INSTRUCTION)
        yield f"{path} entry {number} ({entry['name']})", {**record, prompt_field: text}
