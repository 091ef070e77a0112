"""Where a setting belongs that evaluation does not take, and its own names for what training calls otherwise."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator

from fastflow.config.schema import sections
from fastflow.config.settings_file import setting_names
from fastflow.errors import FastflowError

_INSTEAD = {
    "model.path": "name the models in front: fastflow evaluate MODEL --tasks NAME",
    "model.base": "name the base in front of the other models, which are compared with the first",
    "data.path": "give the questions by --tasks",
    "data.chat_template": "set eval.chat_template",
    "data.system": "set eval.system",
    "data.template_arguments": "set eval.template_arguments",
    "data.suffix": "put it into the questions, or into the prompt of a task in YAML",
    "data.final_assistant": "remove assistant turns at the end of the questions",
    "data.prompt_field": "write a task in YAML, with the entry question",
    "objective.answer_field": "write a task in YAML, with the entry gold",
    "objective.alpha": "set eval.alpha, which the methods of p^alpha read",
    "rollout.temperature": "set eval.temperature",
    "rollout.top_p": "set eval.top_p",
    "rollout.top_k": "set eval.top_k",
    "rollout.min_p": "set eval.min_p",
    "rollout.max_response_tokens": "set eval.max_tokens",
    "eval.max_response_tokens": "set eval.max_tokens",
    "batch.responses_per_prompt": "set eval.samples",
    "run.output": "set eval.output",
    "run.seed": "set eval.seed",
}
_MOST_LISTED = 12  # settings of a section in a message
_LARGEST_K = "pass@k is counted for every k up to --samples; set --samples to the largest k"
_WORDS = {
    "preset": "fastflow evaluate has no presets; give --config FILE with its own settings",
    **dict.fromkeys(("k", "n", "pass_at", "pass_k", "pass_at_k", "pass@k"), _LARGEST_K),
}
_OWN_NAMES = {
    "data.max_prompt_tokens or rollout.max_response_tokens": "eval.max_tokens",
    "rollout.max_response_tokens": "eval.max_tokens",
    "data.chat_template": "eval.chat_template",
    "data.system": "eval.system",
    "data.template_arguments": "eval.template_arguments",
}


def training_settings() -> list[str]:
    """The dotted names of all settings of `fastflow train`."""
    return setting_names(sections())


def refusal(name: str, taken: Collection[str]) -> str | None:
    """Say what to do with a setting that is no setting of an evaluation. None for a name that nothing knows.

    taken: the dotted names that `fastflow evaluate` takes.
    """
    if name in _WORDS:
        return f"--{name} is no option of fastflow evaluate: {_WORDS[name]}"
    if "." not in name:
        name = next((known for known in _INSTEAD if known.partition(".")[2] == name), name)
    if name not in training_settings():
        return None
    section, advice = name.partition(".")[0], _INSTEAD.get(name, "leave it out")
    own = [entry.partition(".")[2] for entry in taken if entry.startswith(f"{section}.")]
    few = 0 < len(own) <= _MOST_LISTED
    listed = own if few else list(dict.fromkeys(entry.partition(".")[0] for entry in taken))
    return (
        f"{name} is a setting of fastflow train, which fastflow evaluate does not take; {advice}. "
        f"{f'Of {section} it' if few else 'It'} takes {', '.join(listed[:-1])} and {listed[-1]} (see fastflow "
        "evaluate --help)"
    )


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Have errors of what evaluation shares with training name the settings of an evaluation."""
    try:
        yield
    except FastflowError as error:
        pattern = "|".join(map(re.escape, _OWN_NAMES))
        error.args = (re.sub(pattern, lambda found: _OWN_NAMES[found[0]], str(error)),)
        raise
