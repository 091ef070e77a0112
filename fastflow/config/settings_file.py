"""A YAML file of settings as a tree: unknown names are refused with the nearest known one."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastflow.config import lists, yaml_file
from fastflow.config.setting import Section, suggest
from fastflow.config.synonyms import advice, meaning
from fastflow.errors import FastflowError

Sections = Mapping[str, type[Section]]


def read_settings_file(file: Path, sections: Sections, also: Sequence[str] = (), *, such_as: str) -> dict[str, Any]:
    """Read a file's settings, without its empty sections. also: names beside the settings. such_as: of sections.

    Raises FastflowError for a bad file or an unknown key.
    """
    tree = yaml_file.read_sections(file, such_as=such_as)
    known = [*setting_names(sections), *also]
    for key in _dotted_keys(tree, sections):
        if not is_known(key, known, sections):
            raise FastflowError(f"{file}: unknown setting {key}: {suggest_setting(key, known)}")
    tree = _with_off_as_word(tree, _settings_with_off(sections))
    try:
        tree = lists.in_tree(tree, lists.list_settings(sections))
    except FastflowError as error:
        raise FastflowError(f"{file}: {error}") from error
    return {key: value for key, value in tree.items() if not (value is None and key in sections)}


def setting_names(sections: Sections) -> list[str]:
    """Return the dotted names of all settings of these sections."""
    return [f"{name}.{entry.name}" for name, section in sections.items() for entry in dataclasses.fields(section)]


def suggest_setting(name: str, known: Sequence[str]) -> str:
    """Suggest what to do by the word that other trainers have for a setting, otherwise by its letters."""
    if meant := [setting for setting in meaning(name) if setting in known]:
        return f"did you mean {' or '.join(meant)}?"
    return advice(name) or suggest(name, known)


def is_known(name: str, known: Iterable[str], sections: Sections) -> bool:
    """Whether the name is a setting, or an entry of a setting that maps names to values."""
    return name in known or name.startswith(tuple(f"{mapping}." for mapping in _mappings(sections)))


def _hints(sections: Sections) -> Iterator[tuple[str, Any]]:
    for name, section in sections.items():
        for entry, hint in typing.get_type_hints(section).items():
            yield f"{name}.{entry}", hint


def _mappings(sections: Sections) -> list[str]:
    return [
        name
        for name, hint in _hints(sections)
        if any(typing.get_origin(choice) is Mapping for choice in typing.get_args(hint))
    ]


def _settings_with_off(sections: Sections) -> set[str]:
    return {name for name, hint in _hints(sections) if "off" in typing.get_args(hint)}


def _with_off_as_word(tree: dict[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    """Turn an unquoted `off`, which YAML reads as false, back into the word."""
    changed = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            value = _with_off_as_word(value, names, f"{name}.")
        changed[key] = "off" if value is False and name in names else value
    return changed


def _dotted_keys(tree: dict[str, Any], sections: Sections) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in _dotted_keys(value, sections))
        elif not (value is None and key in sections):
            yield str(key)
