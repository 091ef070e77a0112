"""Reads defaults, preset, YAML file and command line into a Config, by jsonargparse.

jsonargparse types and merges both YAML and dotted options (`--optim.lr 1e-6`), reads 1e-6 in YAML as a number, and
imports in a tenth of a second. This module looks for unknown names before it, so that an error can name the nearest
known one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from fastflow.config import lists, yaml_file
from fastflow.config.help import SettingsHelp, add_settings
from fastflow.config.parser import CommandParser
from fastflow.config.presets import PRESETS
from fastflow.config.schema import Config, sections
from fastflow.config.setting import suggest
from fastflow.config.settings_file import is_known, read_settings_file, setting_names, suggest_setting
from fastflow.config.wrong_type import in_words
from fastflow.errors import FastflowError

SETTINGS_FILE = "config.yaml"  # of a run, as to_yaml writes them
PYYAMLS_OWN = (LookupError, AttributeError)  # it reads !!int '' so
_FLAGS = ("--dry-run", "--help", "-h")  # options without a value
_OWN_OPTIONS = ("config", "preset", "resume", "devices", "dry-run", "help")


def read_config(arguments: Sequence[str]) -> tuple[Config, bool]:
    """Read the arguments of `fastflow train`. Returns the configuration, and whether this is a dry run.

    Raises FastflowError for unknown names, values of the wrong type or range, and unreadable files.
    """
    parser = build_parser()
    _refuse_unknown_options(arguments)
    _refuse_missing_dashes(arguments)
    for option in ("--config", "--preset"):  # of other options the last one counts
        if sum(entry == option or entry.startswith(f"{option}=") for entry in arguments) > 1:
            raise FastflowError(f"{option} is given twice, and only one of them would count; leave one out")
    file, preset, options = _peek(arguments)
    options = lists.in_options(options, lists.list_settings(sections()))
    if file is not None:
        tree = read_settings_file(file, sections(), ("preset",), such_as="'optim:'")
        preset = preset or tree.pop("preset", None)
        options = ["--config", yaml_file.dump(tree), *options]  # first: the command line overrides it
    if preset is not None:
        if not isinstance(preset, str):
            raise FastflowError(f"{file}: preset is {preset!r}, but must be one of {', '.join(PRESETS)}")
        if preset not in PRESETS:
            raise FastflowError(f"preset {preset!r} is unknown: {suggest(preset, PRESETS)}")
        parser.set_defaults(PRESETS[preset])
    try:
        values = parser.parse_args(options)
    except RecursionError as error:
        raise FastflowError("a setting's value is nested too deeply to be read; see fastflow train --help") from error
    except (argparse.ArgumentError, ValueError, *yaml_file.WRONG_TAG) as error:
        if any(isinstance(found, PYYAMLS_OWN) for found in (error, error.__cause__, error.__context__)):
            words = "a setting's value does not fit the tag (!!name) in front of it; leave the tag out"
            raise FastflowError(words) from error
        raise FastflowError(_one_line(error, file)) from error
    if values["resume"] is not None:
        raise FastflowError("--resume is for fastflow train alone; leave it out here")
    made: dict[str, Any] = {
        name: section(**{entry.name: values[f"{name}.{entry.name}"] for entry in dataclasses.fields(section)})
        for name, section in sections().items()
    }
    return Config(**made), values["dry_run"]


def build_parser() -> ArgumentParser:
    """Make the parser of `fastflow train`, with one option for each setting."""
    parser = ArgumentParser(
        prog="fastflow train",
        usage="fastflow train [--preset NAME] [--config FILE] [--resume RUN] [--devices N] "
        "[--SECTION.SETTING VALUE ...] [--dry-run]",
        description="Train a model towards the alpha-power of its own distribution.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,  # --dry-run prints them
        formatter_class=SettingsHelp,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of the settings below")
    parser.add_argument("--preset", type=str, metavar="NAME", help=f"Starting point: {', '.join(PRESETS)}")
    parser.add_argument(
        "--resume", type=str, metavar="RUN",
        help="Go on with the run in this directory, with its settings; auto: with that in run.output, if it was saved",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, metavar="N", help="Train on N devices of this machine, one process each")
    parser.add_argument("--dry-run", action="store_true", help="Check and print the resolved settings, then exit")
    for name, section in sections().items():
        add_settings(parser, name, section, [entry.name for entry in dataclasses.fields(section)])
    return parser


def to_yaml(config: Config) -> str:
    """Write the configuration as YAML, which `--config` reads back to an equal Config and a terminal shows as text."""
    return yaml_file.dump(json.loads(json.dumps(dataclasses.asdict(config))))


def known_settings() -> list[str]:
    """Return the dotted names of all settings."""
    return setting_names(sections())


def _refuse_unknown_options(arguments: Sequence[str]) -> None:
    settings = known_settings()
    for argument in arguments:
        name = argument[2:].split("=", 1)[0]
        if argument.startswith("--") and not is_known(name, [*settings, *_OWN_OPTIONS], sections()):
            known = [*settings, *(f"--{option}" for option in _OWN_OPTIONS)]
            raise FastflowError(f"unknown option --{name}: {suggest_setting(name, known)}")


def _refuse_missing_dashes(arguments: Sequence[str]) -> None:
    """Settings as Hydra takes them, such as optim.lr=1e-6 or +optim.lr=1e-6, where no option waits for a value."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        waits = before.startswith("--") and "=" not in before and before not in _FLAGS
        if waits or argument.startswith("-") or "=" not in argument:
            continue
        name, _, value = argument.lstrip("+~").partition("=")
        if is_known(name, known_settings(), sections()):
            raise FastflowError(f"{argument} is no option: write --{name} {shlex.quote(value)}")
        raise FastflowError(
            f"{argument} is no option, which begins with --, and {name} no setting: "
            f"{suggest_setting(name, known_settings())}"
        )


def _peek(arguments: Sequence[str]) -> tuple[Path | None, str | None, list[str]]:
    """Split off the values of --config and --preset, which all other arguments override."""
    peek = CommandParser(prog="fastflow train", add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    peek.add_argument("--preset")
    found, rest = peek.parse_known_args(list(arguments))
    return found.config, found.preset, rest


def _one_line(error: Exception, file: Path | None) -> str:
    place = f" (settings file: {file})" if file else ""
    return f"{in_words(error, sections())}; see fastflow train --help{place}"
