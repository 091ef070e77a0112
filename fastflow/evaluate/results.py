"""The files of an evaluation, and what a directory holds already: one to go on with, or what this one would replace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastflow.errors import FastflowError
from fastflow.evaluate.conditions import with_newer
from fastflow.run.directory import CONFIG_FILE, EVALUATIONS

RESULTS_FILE, TABLE_FILE, RESPONSES = "results.json", "results.md", "responses"
_MODEL_FILE = "config.json"


def check_directory(output: Path) -> None:
    """Raise FastflowError for the directory of a run, of a model, or of another program's results."""
    if (output / CONFIG_FILE).is_file():
        raise FastflowError(
            f"--output {output} is the directory of a run, whose report this evaluation would replace; write to "
            f"{output / EVALUATIONS / 'NAME'}, which the run's report shows"
        )
    if (output / _MODEL_FILE).is_file():
        raise FastflowError(f"--output {output} is the directory of a model; choose another for its evaluation")
    earlier = _read(output)
    if earlier is not None and not _is_evaluation(earlier):
        raise FastflowError(
            f"--output {output} holds a {RESULTS_FILE} that no evaluation wrote; choose another directory"
        )


def check_earlier(output: Path, settings: Mapping[str, Any], files: Mapping[str, Mapping[str, str]]) -> None:
    """Raise FastflowError where the directory holds results that this evaluation would replace by others.

    The same evaluation may be repeated, and models and tasks may be added to it.

    settings: what the results say of how responses are drawn. files: of responses, by task and model, named as in the
    results; their names carry a digest of all that decides their content.
    """
    earlier = _read(output)
    if earlier is None:
        return
    lost = _lost(earlier, json.loads(json.dumps(settings)), files)
    if lost is not None:
        raise FastflowError(
            f"{output} holds another evaluation: {lost}; give another --output, or remove {output / RESULTS_FILE} if "
            "those results are no longer needed"
        )


def _lost(earlier: Any, settings: Mapping[str, Any], files: Mapping[str, Mapping[str, str]]) -> str | None:
    before = with_newer(earlier["settings"])
    for name, value in settings.items():
        if before.get(name, value) != value:
            return f"its {name} is {_shown(before[name])}, and now {_shown(value)}"
    for task in earlier["tasks"]:
        name = task["name"]
        if name not in files:
            return f"its task {name} is not asked now (--tasks)"
        for model in task["models"]:
            if model["name"] not in files[name]:
                return f"its model {model['name']} is not asked now"
            if model["responses"] != files[name][model["name"]]:
                return (
                    f"its responses of {model['name']} to {name} came from other weights, questions, settings or "
                    "graders than those of now"
                )
    return None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read(output: Path) -> Any:
    """The results in a directory; None where there are none, or none that can be read, which are made anew."""
    try:
        return json.loads((output / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_evaluation(tree: Any) -> bool:
    try:
        models = [model for task in tree["tasks"] for model in task["models"] if isinstance(task["name"], str)]
        named = all(isinstance(model["name"], str) and isinstance(model["responses"], str) for model in models)
        return named and isinstance(tree["settings"], dict)
    except (KeyError, TypeError):
        return False
