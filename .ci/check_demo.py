"""Check what `fastflow demo` left behind against the bars it promises. Usage: check_demo.py DIRECTORY | JSON..."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def load(path: Path) -> dict:
    """The comparison from `fastflow demo --json FILE`, or from the evaluations in a demo directory."""
    if path.is_file():
        return json.loads(path.read_text())
    results: dict = {}
    for file in sorted(path.glob("*/*/evaluation.json")):
        results.update(json.loads(file.read_text()))
    return results


def bars(results: dict) -> list[tuple[str, float, float, float]]:
    """(what, value, lowest, highest) for every bar."""
    base, sharp, control = results["base"], results["alpha_4"], results["low_temperature"]
    story_base, story = results["story_base"], results["story_alpha_0.5"]
    timed = [("seconds", results["seconds"], 0, 300)] if "seconds" in results else []
    return [
        *timed,
        ("base accuracy", base["accuracy"], 0.30, 0.60),
        ("sharpened accuracy", sharp["accuracy"], 0.90, 1),
        ("sharpened greedy accuracy", sharp["greedy_accuracy"], 0.98, 1),
        ("length ratio", sharp["mean_length"] / base["mean_length"], 0.8, 1.4),
        ("truncated share", sharp["truncated_share"], 0, base["truncated_share"]),
        ("boxed share", sharp["boxed_share"], 0.97, 1),
        ("low-temperature accuracy", control["accuracy"], 0, sharp["accuracy"] - 0.01),
        ("entropy ratio of the stories", story["sequence_entropy"] / story_base["sequence_entropy"], 1.5, 10),
        ("distinct stories", story["distinct_share"], 0.95, 1),
        ("valid stories", story["valid_share"], 0.95, 1),
    ]


def main() -> int:
    failed = 0
    for argument in sys.argv[1:]:
        print(argument)
        for what, value, lowest, highest in bars(load(Path(argument))):
            holds = lowest <= value <= highest
            failed += not holds
            print(f"  {'ok  ' if holds else 'FAIL'} {what}: {value:.3f} (from {lowest:g} to {highest:g})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
