"""Lists settings in a command's help: what each takes, what it does, and its default."""

from __future__ import annotations

import dataclasses
import re
import typing
from argparse import Action
from collections.abc import Collection
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

TAKES = {int: "N", float: "NUMBER", str: "TEXT"}  # bool and choices name their values, lists their items


def add_settings(parser: ArgumentParser, name: str, section: type[Any], entries: Collection[str]) -> None:
    """Add an option for each of these entries of a section. name: of the section."""
    group = parser.add_argument_group(f"{name}: {_first_sentence(section.__doc__ or '')}")
    hints = typing.get_type_hints(section)
    for entry in dataclasses.fields(section):
        if entry.name in entries:
            hint = hints[entry.name]
            option = group.add_argument(
                f"--{name}.{entry.name}", type=hint, default=entry.default, help=help_text(entry)
            )
            option.metavar = _takes(hint) or option.metavar


def _first_sentence(text: str) -> str:
    """Return it on one line, without its full stop: the formatter adds a colon."""
    return re.split(r"\.(?: (?=[A-Z])|$)", " ".join(text.split()), maxsplit=1)[0]


class SettingsHelp(DefaultHelpFormatter):
    """Leaves out Python's names of types, which say less than the help, and defaults that are nothing."""

    def _get_help_string(self, action: Action) -> str:
        nothing = action.default in (None, "", ()) or not action.option_strings or action.nargs == 0
        return (action.help or "") + ("" if nothing else f" (default: {shown(action.default)})")


def help_text(entry: dataclasses.Field[Any]) -> str:
    """Return a setting's help, unit and range."""
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in entry.metadata["bounds"].items() if bound is not None)
    notes = "; ".join(note for note in (entry.metadata["unit"], allowed) if note)
    return entry.metadata["help"] + (f" [{notes}]" if notes else "")


def _takes(hint: Any) -> str | None:
    """Name what a setting takes; None where the parser says more, as of choices."""
    plain = next(one for one in (*typing.get_args(hint), hint) if one is not type(None))
    return None if typing.get_origin(hint) is tuple else TAKES.get(plain)


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
