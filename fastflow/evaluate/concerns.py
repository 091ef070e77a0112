"""Says which scores tell more of the grader than of the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastflow.counted import counted
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.task import CREATIVE, REWARDED

MOST_UNPARSED = 0.5  # share of responses


def concerns(results: dict[str, Any], own: Collection[str]) -> list[str]:
    """Return a sentence for each model and task where most responses have no answer that the grader reads.

    own: tasks whose questions are the user's, who can word and grade them in another way.
    """
    found = []
    for task in results["tasks"]:
        for model in task["models"] if task.get("kind") not in (CREATIVE, REWARDED) else ():
            verdicts = model["scores"]["verdicts"]
            unparsed, responses = verdicts[Verdict.UNPARSED.value], sum(verdicts.values())
            if unparsed > MOST_UNPARSED * responses:
                found.append(
                    f"{task['name']}: {unparsed} of {counted(responses, 'response')} of {model['name']} have no answer "
                    f"that the grader {task['grader']} reads, so they cannot be right; "
                    f"{_remedy(results['settings'], task, model, is_own=task['name'] in own)}"
                )
    return found


def _remedy(settings: dict[str, Any], task: dict[str, Any], model: dict[str, Any], *, is_own: bool) -> str:
    ways = []
    if (model["scores"]["truncated"]["value"] or 0) > MOST_UNPARSED:
        ways.append("raise --max_tokens, since most responses are cut off")
    if not settings["chat_template"]:
        ways.append("give --chat_template true if it is a chat model")
    if is_own:
        ways.append("say in the prompt how to give the answer, such as in \\boxed{}")
    if is_own and task["grader"] == "math":
        ways.append("grade plain numbers by numeric, which takes a response's last one")
    return ", or ".join(ways or ["look at the responses in report.html"])
