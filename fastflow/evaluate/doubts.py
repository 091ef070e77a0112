"""Says which scores tell more of the grader than of the model."""

from __future__ import annotations

from typing import Any

from fastflow.counted import counted
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.task import CREATIVE

MOST_UNPARSED = 0.5  # share of responses


def doubts(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each model and task where most responses have no answer that the grader reads."""
    found = []
    for task in results["tasks"]:
        for model in task["models"] if task.get("kind") != CREATIVE else ():
            verdicts = model["scores"]["verdicts"]
            unparsed, responses = verdicts[Verdict.UNPARSED.value], sum(verdicts.values())
            if unparsed > MOST_UNPARSED * responses:
                found.append(
                    f"{task['name']}: {unparsed} of {counted(responses, 'response')} of {model['name']} have no answer "
                    f"that the grader {task['grader']} reads, so they cannot be right; {_remedy(task, model)}"
                )
    return found


def _remedy(task: dict[str, Any], model: dict[str, Any]) -> str:
    ways = ["say in the prompt how to give the answer, such as in \\boxed{}"]
    if (model["scores"]["truncated"]["value"] or 0) > MOST_UNPARSED:
        ways.insert(0, "raise --max_tokens, since most responses are cut off")
    if task["grader"] == "math":
        ways.append("grade plain numbers by numeric, which takes a response's last one")
    return ", or ".join([", ".join(ways[:-1]), ways[-1]]) if len(ways) > 1 else ways[0]
