"""Try every data set of reasoning-gym: `python -m tests.gym_sets`. Made twice alike, its own answers right, junk not.

Prints a line for each that fails, and how many work.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict

from fastflow.data.gym import make_entries
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.gym import as_gold, own_answer
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

SIZE = 5
JUNK = ("\\boxed{qqq}", "\\boxed{[[1, 2], [3]]}", "<answer>__import__('os')</answer>", "no answer")
NEEDS_SETTINGS = {"composite"}  # a mixture of others


def main() -> int:
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - NEEDS_SETTINGS)
    path = f"gym:{'+'.join(names)}"
    entries, again = (list(make_entries(path, {"size": SIZE})) for _ in range(2))
    found: dict[str, set[str]] = defaultdict(set)
    for one, other in zip(entries, again, strict=True):
        if json.dumps(one) != json.dumps(other):
            found[one["name"]].add("two processes make different entries")
    unanswered = sorted({entry["name"] for entry in entries if entry["answer"] is None})
    asked = [(entry, True, f"<answer>{own_answer(as_gold(entry))}</answer>") for entry in entries]
    asked = [one for one in asked if one[0]["answer"] is not None]
    asked += [(entry, False, response) for entry in entries for response in JUNK]
    with GraderPool(("gym",), timeout=20) as pool:
        verdicts = pool.grade(Item("gym", as_gold(entry), response) for entry, _, response in asked)
        for (entry, right, response), verdict in zip(asked, verdicts, strict=True):
            if verdict not in ((Verdict.RIGHT,) if right else (Verdict.WRONG, Verdict.UNPARSED)):
                found[entry["name"]].add(f"{response[:60]!r} is {verdict.value}")
    for name, complaints in sorted(found.items()):
        print(f"{name}: {'; '.join(sorted(complaints))}")
    print(f"{len(names) - len(found)} of {len(DATASETS)} work; need settings: {', '.join(sorted(NEEDS_SETTINGS))}")
    print(f"only their verifier knows what is right: {', '.join(unanswered)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
