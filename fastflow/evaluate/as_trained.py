"""Options of `fastflow evaluate` that put questions as the training of a run put its prompts."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from fastflow.config.reader import read_config
from fastflow.config.schema import Config, DataConfig, RolloutConfig
from fastflow.errors import FastflowError
from fastflow.evaluate.settings import BenchmarkConfig, EvaluateConfig
from fastflow.run.directory import CONFIG_FILE


def options_of(training: Config) -> dict[str, str]:
    """The options that differ from their defaults, with their values as text."""
    return _options(training.data, training.rollout)


def in_shell(options: dict[str, str]) -> str:
    """The options as words of a command line."""
    return shlex.join(word for name, value in options.items() for word in (f"--{name}", value))


def unlike_training(model: str, asked: EvaluateConfig) -> str | None:
    """Say that questions are put otherwise than the prompts of the run that made a model, and what puts them alike.

    model: a run's directory, or one in it. None where they are alike, and where no settings of a run can be read.
    """
    run = next((place for place in (Path(model), Path(model).parent) if (place / CONFIG_FILE).is_file()), None)
    if run is None:
        return None
    try:
        training, _ = read_config(["--config", str(run / CONFIG_FILE)])
    except FastflowError:  # of another version; the evaluation does not need them
        return None
    trained, now = options_of(training), _options(asked.eval, asked.rollout)
    ways = []
    if missing := {name: value for name, value in trained.items() if now.get(name) != value}:
        ways.append(f"add {in_shell(missing)}")
    if more := [f"--{name}" for name in now if name not in trained]:
        ways.append(f"leave out {', '.join(more)}")
    if not ways:
        return None
    return f"{run} was trained on prompts put otherwise than these questions; to put them alike, {' and '.join(ways)}"


def _options(put: DataConfig | BenchmarkConfig, rollout: RolloutConfig) -> dict[str, str]:
    found = {}
    if put.chat_template:
        found["chat_template"] = "true"
    if put.template_arguments:
        found["template_arguments"] = json.dumps(dict(put.template_arguments))
    if put.system is not None:
        found["system"] = put.system
    if rollout.stop:
        found["rollout.stop"] = json.dumps(list(rollout.stop))
    if rollout.min_response_tokens:
        found["rollout.min_response_tokens"] = str(rollout.min_response_tokens)
    return found
