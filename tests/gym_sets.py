"""Try every data set of reasoning-gym: `python -m tests.gym_sets`. Made twice alike, its own answers right, junk not.

Prints a line for each that fails, and how many work. Takes some minutes.
"""

from __future__ import annotations

import json
import sys
import time

from fastflow.data.gym import make_entries
from fastflow.errors import FastflowError
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.gym import as_gold, own_answer
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

SIZE = 5
JUNK = ("\\boxed{qqq}", "\\boxed{}", "\\boxed{[[1, 2], [3]]}", "<answer>__import__('os')</answer>", "no answer")


def main() -> int:
    import reasoning_gym.factory

    works, unverified = 0, []
    with GraderPool(needs_math=False, needs_gym=True) as pool:
        for name in sorted(reasoning_gym.factory.DATASETS):
            started = time.monotonic()
            complaint = tried(name, pool)
            works += not complaint
            if complaint == "":
                golds = [as_gold(entry) for entry in make_entries(f"gym:{name}", {"size": 1})]
                unverified += [name] if own_answer(golds[0]) is None else []
            else:
                print(f"{name}: {complaint}", flush=True)
            if time.monotonic() - started > 60:
                print(f"{name}: took {time.monotonic() - started:.0f} s", flush=True)
    print(f"{works} of {len(reasoning_gym.factory.DATASETS)} work; without an answer of their own: {unverified}")
    return 0


def tried(name: str, pool: GraderPool) -> str:
    """What is wrong with a data set; "" where nothing is."""
    try:
        entries, again = (list(make_entries(f"gym:{name}", {"size": SIZE})) for _ in range(2))
    except FastflowError as error:
        return str(error)
    if json.dumps(entries) != json.dumps(again):
        return "two processes make different entries"
    golds = [as_gold(entry) for entry in entries]
    own = [(gold, answer) for gold in golds if (answer := own_answer(gold)) is not None]
    verdicts = list(pool.grade(Item("gym", gold, f"<answer>{answer}</answer>") for gold, answer in own))
    if any(verdict is not Verdict.RIGHT for verdict in verdicts):
        return f"its own answers are {', '.join(verdict.value for verdict in verdicts)}"
    junk = list(pool.grade(Item("gym", gold, response) for gold in golds for response in JUNK))
    wrong = [verdict.value for verdict in junk if verdict not in (Verdict.WRONG, Verdict.UNPARSED)]
    return f"junk is {', '.join(wrong)}" if wrong else ""


if __name__ == "__main__":
    sys.exit(main())
