"""Reads hostile settings and data files: each is refused in one sentence with exit code 2, or works.

    python -m tests.fuzz --cases 10000 --seed 0
    python -m tests.fuzz --cases 1000 --only data --keep faults     also write the inputs that failed

All cases run in this process as `fastflow train --dry-run`, each under a time limit. Exits with 1 when one ends in a
traceback, hangs, has another exit code, prints control characters, or prints settings that it cannot read back.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

torch.set_num_threads(1)

from hostile_data import data_cases  # noqa: E402
from hostile_settings import settings_cases  # noqa: E402
from refusing import CaseJudge, Fault  # noqa: E402

CHUNK = 250  # cases between two lines of progress


class Campaign:
    """Counts cases, and keeps one example of each kind of fault."""

    def __init__(self) -> None:
        self.done: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.faults: dict[str, list[tuple[Any, Fault]]] = collections.defaultdict(list)

    def run(
        self, name: str, cases: SearchStrategy[Any], judge: Callable[[Any], Fault | None], count: int, start: int
    ) -> None:
        """Judge `count` cases that follow from the seed `start`."""
        aim = self.done[name] + count

        def one(case: Any) -> None:
            began = time.monotonic()
            fault = judge(case)
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.done[name] += 1
            if fault is not None:
                if fault.kind not in self.faults:
                    print(f"        new: {fault.kind}: {repr(case)[:300]}", flush=True)
                self.faults[fault.kind].append((case, fault))

        while self.done[name] < aim:
            limits = settings(
                max_examples=aim - self.done[name], database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            seed(start)(limits(given(cases)(one)))()
            start += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="cases in all (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases (default: 0)")
    parser.add_argument("--only", choices=("settings", "data"), help="one of the two readers")
    parser.add_argument("--keep", metavar="DIRECTORY", type=Path, help="write an example of each fault here")
    options = parser.parse_args()
    campaign, began = Campaign(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastflow-fuzz-") as home:
        judge = CaseJudge(Path(home))
        kinds = {"settings": (settings_cases(), judge.settings), "data": (data_cases(), judge.data)}
        chosen = [options.only] if options.only else list(kinds)
        chunk, number = min(CHUNK, options.cases), 0
        while (done := campaign.done.total()) < options.cases:
            name = chosen[number % len(chosen)]
            campaign.run(name, *kinds[name], min(chunk, options.cases - done), options.seed * 1_000_003 + number)
            number += 1
            faults = sum(map(len, campaign.faults.values()))
            print(
                f"{campaign.done.total():>7} of {options.cases} cases in {time.monotonic() - began:.0f} s, slowest "
                f"{campaign.slowest:.1f} s: {judge.accepted} accepted, {faults} faults of {len(campaign.faults)} kinds",
                flush=True,
            )  # fmt: skip
    for index, (kind, examples) in enumerate(sorted(campaign.faults.items())):
        case, fault = min(examples, key=lambda example: len(repr(example[0])))
        print(f"\n{len(examples)} x {kind}\n{repr(case)[:2000]}\n{fault.details[-3000:]}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{index}.txt").write_text(
                f"{kind}\n{case!r}\n{fault.details}\n", encoding="utf-8", errors="backslashreplace"
            )
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
