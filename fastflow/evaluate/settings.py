"""Settings of `fastflow evaluate`: what is asked, of which models, how often; engine and model as in training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

from fastflow.config import lists, yaml_file
from fastflow.config.help import SettingsHelp, add_settings
from fastflow.config.schema import Config, ImportanceConfig, ModelConfig, RolloutConfig
from fastflow.config.setting import Section, setting, suggest
from fastflow.config.settings_file import read_settings_file
from fastflow.config.wrong_type import in_words
from fastflow.errors import FastflowError
from fastflow.evaluate import refused_settings
from fastflow.evaluate.conditions import SAMPLING
from fastflow.evaluate.creative.settings import JudgeConfig
from fastflow.evaluate.methods.catalogue import MethodSettings, Name, resolve
from fastflow.evaluate.task import names


@dataclass(frozen=True)
class BenchmarkConfig(Section):
    """What is asked, of which models, and how it is counted."""

    models: tuple[str, ...] = setting((), "Models: directories, hub ids, runs of fastflow train, or adapters")
    tasks: tuple[str, ...] = setting(
        (), "Names of tasks that come along, YAML files of tasks, or JSONL files with `prompt` and `answer`"
    )
    samples: int = setting(16, "Responses to each prompt", unit="responses", at_least=1, at_most=4096)
    temperature: float = setting(1.0, "Sampling temperature; 0 is greedy", at_least=0)
    top_p: float = setting(1.0, "Nucleus: sample from the fewest tokens with this much probability", above=0, at_most=1)
    top_k: int = setting(0, "Sample from the k likeliest tokens; 0 from all", unit="tokens", at_least=0, at_most=10**9)
    min_p: float = setting(
        0.0, "Leave out tokens with less than this share of the likeliest one's probability", at_least=0, at_most=1
    )
    max_tokens: int = setting(3072, "Length limit, end-of-sequence token included", unit="tokens", at_least=1)
    seed: int = setting(0, "Fixes the responses on one device", at_least=0, at_most=2**63 - 1)
    limit: int = setting(0, "Use only the first N questions of each task; 0 uses all", unit="questions", at_least=0)
    method: Name = setting(
        "sample", "How an answer is drawn: sample, low_temperature, best_of_n, majority_vote, beam, mcmc_exact, "
        "mcmc_published, power_smc or verbalized; the page docs/evaluate.md explains each",
    )  # fmt: skip
    alpha: float | None = setting(
        None, "Power of low_temperature, mcmc_exact, mcmc_published and power_smc (default 4)", above=0, at_most=1000
    )
    steps: int | None = setting(
        None, "Moves of mcmc_exact and mcmc_published after each block (default 10)", unit="moves", at_least=0
    )
    block: int | None = setting(
        None, "Tokens between the moves of mcmc_exact and mcmc_published (default: a sixteenth of max_tokens), or "
        "between two looks of power_smc at its weights (default 32)", unit="tokens", at_least=1,
    )  # fmt: skip
    particles: int | None = setting(
        None, "Responses in the population of power_smc (default 16)", unit="responses", at_least=1, at_most=65536
    )
    candidates: int | None = setting(
        None, "Samples from which best_of_n and majority_vote choose (default 16), beams of beam (4), answers that "
        "verbalized asks for (5)", at_least=1, at_most=65536,
    )  # fmt: skip
    tail: float | None = setting(
        None, "verbalized asks for answers with a probability below this (default: any answer)", above=0, at_most=1
    )
    adapter_scale: tuple[float, ...] = setting(
        (), "Strengths at which LoRA adapters are evaluated side by side, such as 0,0.5,1: 0 is the base, 1 as trained",
        at_least=0, at_most=100,
    )  # fmt: skip
    diversity: bool = setting(False, "Measure diversity on graded tasks too, not only on creative ones")
    embedding: str | None = setting(
        None, "Model of sentence embeddings for semantic diversity: a sentence-transformers model, its directory, or "
        "the directory of a transformers encoder",
    )  # fmt: skip
    chat_template: bool = setting(False, "Render prompts with the tokenizer's chat template instead of as raw text")
    template_arguments: Mapping[str, Any] | None = setting(
        None, "Variables for the chat template, such as {enable_thinking: false} (needs chat_template)"
    )
    system: str | None = setting(None, "System message put before each prompt (needs chat_template)")
    grader: Literal["math", "choice", "exact", "numeric"] = setting("math", "Grader of own JSONL files")
    reward: str | None = setting(
        None,
        "Function that gives responses to own JSONL files a number, in place of grader and answers: "
        "package.module:function(response_text, record) -> float",
    )
    data_folder: str | None = setting(None, "Directory with NAME.jsonl, NAME.parquet or a data set NAME for each task")
    output: str = setting("runs/evaluate", "Directory of responses, results.json and results.md")
    prompts_per_part: int = setting(
        32, "Prompts whose responses are saved at once; a killed evaluation goes on after the last part",
        unit="prompts", at_least=1,
    )  # fmt: skip
    timeout: float = setting(5.0, "Time in which an answer must be graded", unit="seconds", above=0)
    workers: int = setting(2, "Processes that grade", unit="processes", at_least=1, at_most=256)

    @classmethod
    def section_name(cls) -> str:
        return "eval"


@dataclass(frozen=True)
class EvaluateConfig:
    """The whole configuration of an evaluation."""

    eval: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        rollout = dataclasses.replace(self.rollout, max_response_tokens=self.eval.max_tokens)
        Config(  # refuses what contradicts itself in these sections
            rollout=rollout, model=self.model, importance=ImportanceConfig(source="recompute")
        )
        if not self.eval.models:
            raise FastflowError("no model is named; write fastflow evaluate MODEL --tasks NAME")
        if not self.eval.tasks:
            raise FastflowError("eval.tasks is not set; give --tasks with names, YAML or JSONL files")
        resolve(self.eval, self.rollout)  # refuses settings that contradict the method
        if self.eval.temperature == 0 and self.eval.samples > 1:
            raise FastflowError(f"eval.temperature = 0 gives {self.eval.samples} equal responses; set --samples 1")
        for name in ("system", "template_arguments"):
            if getattr(self.eval, name) is not None and not self.eval.chat_template:
                raise FastflowError(
                    f"eval.{name} is set but eval.chat_template is off; switch the template on or drop eval.{name}"
                )

    @property
    def method(self) -> MethodSettings:
        """The method with all that it reads."""
        return resolve(self.eval, self.rollout)


SECTIONS: dict[str, type[Section]] = {
    "eval": BenchmarkConfig, "model": ModelConfig, "rollout": RolloutConfig, "judge": JudgeConfig,
}  # fmt: skip
_LEFT_OUT = {  # of training, or said by a setting of `eval`
    "model": {"path", "base", "checkpoint_share", "compile"},
    "rollout": {*SAMPLING, "max_response_tokens", "ahead", "sleep"},
}


def read_settings(arguments: Sequence[str]) -> EvaluateConfig:
    """Parse the arguments of `fastflow evaluate`. Raises FastflowError for unknown names and values out of range."""
    options = _expand(arguments)
    parser = build_parser()
    try:
        values = parser.parse_args(options)
    except RecursionError as error:
        raise FastflowError("a setting's value is nested too deeply; see fastflow evaluate --help") from error
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise FastflowError(f"{in_words(error, SECTIONS)}; see fastflow evaluate --help") from error
    made = {
        name: section(**{entry: values[f"{name}.{entry}"] for entry in _entries(name)})
        for name, section in SECTIONS.items()
    }
    return EvaluateConfig(**made)  # type: ignore[arg-type]


def build_parser() -> ArgumentParser:
    """The parser of `fastflow evaluate`, one option per setting."""
    parser = ArgumentParser(
        prog="fastflow evaluate",
        usage="fastflow evaluate MODEL [MODEL ...] --tasks NAME[,NAME ...] [--config FILE] [--SETTING VALUE ...]",
        description="Sample from models on tasks, grade the responses, and compare. Settings of `eval` may be written "
        f"without their section: --tasks is --eval.tasks. Tasks that come along: {', '.join(names())}.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        formatter_class=SettingsHelp,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the settings below")
    for name, section in SECTIONS.items():
        add_settings(parser, name, section, _entries(name))
    return parser


def _entries(name: str) -> list[str]:
    return [entry.name for entry in dataclasses.fields(SECTIONS[name]) if entry.name not in _LEFT_OUT.get(name, ())]


def _taken() -> list[str]:
    return [f"{name}.{entry}" for name in SECTIONS for entry in _entries(name)]


def _expand(arguments: Sequence[str]) -> list[str]:
    """Models in front as --eval.models, short names with their section, the file of --config as its content, and
    lists as lists.
    """
    rest, models = list(arguments), []
    while rest and not rest[0].startswith("-"):
        models.append(rest.pop(0))
    known = _taken()
    options, waits = [f"--eval.models={json.dumps(models)}"] if models else [], False
    for argument in rest:
        if waits:
            options[-1] += f"={argument}"
            waits = False
            continue
        if not argument.startswith("--"):
            raise FastflowError(f"unexpected {argument!r}: models stand in front, before the first option")
        name, equals, value = argument[2:].partition("=")
        short = name.replace("-", "_")
        full = f"eval.{short}" if short in _entries("eval") else name
        if full not in known and name not in ("config", "help"):
            unknown = f"unknown option --{name}: {suggest(full, [*known, *_entries('eval'), 'config'])}"
            raise FastflowError(refused_settings.refusal(short, known) or unknown)
        options.append(f"--{full}" + (f"={value}" if equals else ""))
        waits = not equals and name != "help"
    options = lists.in_options(options, lists.list_settings(SECTIONS))
    options.sort(key=lambda option: not option.startswith("--config="))  # first: the command line overrides it
    return [_with_content(option) for option in options]


def _with_content(option: str) -> str:
    """Replace the file that --config names by what it holds."""
    if not option.startswith("--config="):
        return option
    file, taken = Path(option.removeprefix("--config=")), _taken()
    tree = read_settings_file(file, SECTIONS, refused_settings.training_settings(), such_as="'eval:'")
    for section, values in tree.items():
        for name in (f"{section}.{entry}" for entry in values if isinstance(values, dict)):
            if name not in taken and (refused := refused_settings.refusal(name, taken)):
                raise FastflowError(f"{file}: {refused}")
    return f"--config={yaml_file.dump(tree)}"
