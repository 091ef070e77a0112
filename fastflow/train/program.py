"""Training from a Python program, whose prompts and functions may stand in its memory (docs/python.md)."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, cast, get_args, get_origin, get_type_hints

from fastflow.config.program import FUNCTIONS, PROMPTS, Program, stand_in
from fastflow.config.reader import known_settings, read_config
from fastflow.config.resume import Resume
from fastflow.config.schema import Config, sections
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.objective import MakeObjective
from fastflow.run.logs import open_console
from fastflow.train.command import train

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOURCES = ("config", "preset")  # what the command line reads settings from
_INSTEAD = {
    "model.path": "the path of its directory", "model.base": "the path of its directory",
    PROMPTS: "a list of prompts, or a path", "lora.targets": "names with commas between them",
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A policy that a run has trained. directory: where it is saved, in the form of transformers."""

    directory: Path
    trust_remote_code: bool = False

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        """The policy as a model of transformers, on the CPU, with its adapters merged: it generates as any other."""
        from transformers import AutoModelForCausalLM

        return cast(
            "PreTrainedModel",
            AutoModelForCausalLM.from_pretrained(
                self.directory, dtype="auto", use_safetensors=True, trust_remote_code=self.trust_remote_code
            ),
        )

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.directory, trust_remote_code=self.trust_remote_code)


def fine_tune(
    settings: Mapping[str, Any],
    *,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    objective: MakeObjective = make_objective,
    resume: Resume = "no",
    console: Console | None = None,
) -> Trained:
    """Carry out a run as `fastflow train` does. Returns the trained policy.

    settings: by their dotted names, and `config` or `preset` as on the command line. data.path may be the prompts
    themselves; objective.reward, objective.format_check and eval.reward may be the functions themselves. on_step:
    called after each step with its number and its metrics. objective: makes the loss. resume: "yes" goes on with the
    run in run.output; "auto" does so where that has a save. console: by default one that shows what the command shows.
    Raises FastflowError for what the user can mend; whatever else ends the run, its policy is saved first.
    """
    if resume not in get_args(Resume):
        raise FastflowError(f"resume is {resume!r}: {suggest(str(resume), get_args(Resume))}")
    config, program = configure(settings, on_step)
    if resume != "no" and config.run.overwrite:
        raise FastflowError(
            f"resume = {resume} goes on with a run, and run.overwrite removes it; leave one of them out"
        )
    directory = train(config, console or open_console(), objective, resume=resume, program=program)
    return Trained(directory, config.model.trust_remote_code)


def configure(
    settings: Mapping[str, Any], on_step: Callable[[dict[str, Any]], None] | None = None
) -> tuple[Config, Program]:
    """Read settings as the command line does. Things in place of names go to the program."""
    things = {name: value for name, value in settings.items() if _is_thing(name, value)}
    options = []
    for name, value in settings.items():
        if name not in (*SOURCES, *known_settings()):
            raise FastflowError(f"unknown setting {name}: {suggest(name, known_settings())}")
        options.append(f"--{name}={stand_in(name, value) if name in things else _written(name, value)}")
    return read_config(options)[0], Program(things, on_step)


def _is_thing(name: str, value: Any) -> bool:
    if name == PROMPTS:
        return isinstance(value, (list, tuple))
    return name in FUNCTIONS and callable(value)


def _written(name: str, value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    kinds = _kinds(name)
    if value is None and type(None) not in kinds:
        raise FastflowError(f"{name} is None, but has no such value; leave it out")
    if value is not None and set(kinds) <= {str, type(None)}:
        raise FastflowError(f"{name} is a {type(value).__name__}; give {_INSTEAD.get(name, 'a text')}")
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FastflowError(
            f"{name} is a {type(value).__name__}, which no setting can hold; give what the command line takes"
        ) from error


def _kinds(name: str) -> tuple[Any, ...]:
    """Return the types of which a setting's value is one."""
    if name in SOURCES:
        return (str,)
    section, _, entry = name.partition(".")
    hint = get_type_hints(sections()[section])[entry]
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
