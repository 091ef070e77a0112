"""Settings that hold several values: one value, or several between commas, may stand without the brackets of a list."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastflow.config import yaml_file
from fastflow.config.setting import Section
from fastflow.errors import FastflowError

WHOLE = ("rollout.stop",)  # whose texts may hold commas: one without brackets is one text


@dataclass(frozen=True)
class ListSetting:
    """A setting of several texts or numbers. count: how many numbers it must have; None for any number of values."""

    name: str
    item: type
    count: int | None

    def of_value(self, value: Any) -> Any:
        """Return the list that a value from YAML means; None stays for the parser.

        Raises FastflowError for a value that is no such list.
        """
        if value is None:
            return None
        values = self._split(value) if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)):
            values = [values]
        for found in values:
            if self.item is str and not isinstance(found, str):
                raise FastflowError(f"{self.name} holds {json.dumps(found, default=str)}, which is no text; put it "
                                    f"into quotes, as in {self._example()}")  # fmt: skip
            if self.item is float and (isinstance(found, bool) or not isinstance(found, (int, float))):
                raise FastflowError(f"{self.name} holds {found!r}, which is no number; write {self._example()}")
        if self.count not in (None, len(values)):
            raise FastflowError(
                f"{self.name} must hold {self.count} numbers, not {len(values)}; write them as in {self._example()}"
            )
        return list(values)

    def of_text(self, text: str) -> str:
        """Return the list in JSON that a text from the command line means; a list in YAML, and null, stay as they are.

        Raises FastflowError for a text that is no such list.
        """
        if text == "null":
            return text
        value = self.of_value(self._listed(text) if text.startswith("[") else text)
        return json.dumps(value, ensure_ascii=False)  # YAML would not join the two halves of an escaped emoji

    def _listed(self, text: str) -> Any:
        try:
            return yaml_file.load(text)
        except ValueError as error:
            raise FastflowError(f"{self.name} = {text[:100]} is no list; write {self._example()}: {error}") from error

    def _split(self, text: str) -> Any:
        if self.name in WHOLE:
            return [text]
        if text.startswith("["):
            return self._listed(text)
        parts = [part.strip() for part in text.split(",")]
        return [part if self.item is str else _number(part) for part in parts if part]

    def _example(self) -> str:
        if self.item is float:
            return "0.9,0.95" if self.count else "0,0.5,1"
        return '["first","second"]'


def list_settings(sections: Mapping[str, type[Section]]) -> dict[str, ListSetting]:
    """Return the settings of several values in these sections, by their dotted names."""
    found = {}
    for section, kind in sections.items():
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            if typing.get_origin(hints[entry.name]) is tuple:
                item, *more = typing.get_args(hints[entry.name])
                name = f"{section}.{entry.name}"
                found[name] = ListSetting(name, item, None if more == [...] else 1 + len(more))
    return found


def in_tree(tree: Mapping[str, Any], lists: Mapping[str, ListSetting], prefix: str = "") -> dict[str, Any]:
    """Return a tree of settings from YAML with each value of a list setting as a list."""
    changed: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in lists:
            value = lists[name].of_value(value)
        elif isinstance(value, dict):
            value = in_tree(value, lists, f"{name}.")
        changed[key] = value
    return changed


def in_options(arguments: Sequence[str], lists: Mapping[str, ListSetting]) -> list[str]:
    """Return the arguments with each value of a list setting as a list, `--NAME VALUE` and `--NAME=VALUE` alike."""
    options: list[str] = []
    waits: ListSetting | None = None
    for argument in arguments:
        if waits is not None and not argument.startswith("--"):
            options[-1] += f"={waits.of_text(argument)}"
            waits = None
            continue
        name, equals, text = argument[2:].partition("=") if argument.startswith("--") else ("", "", "")
        waits = lists.get(name)
        if waits is not None and equals:
            argument, waits = f"--{name}={waits.of_text(text)}", None
        options.append(argument)
    return options


def _number(text: str) -> Any:
    """The number that a text means to YAML, otherwise the text."""
    try:
        return yaml_file.load(text)
    except ValueError:
        return text
