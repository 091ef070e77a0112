"""Every setting at its bounds, just beyond them, and far beyond."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from fastflow.config.schema import DataConfig, Section, sections
from fastflow.config.setting import DEEPEST, LARGEST_INTEGER, LONGEST_TEXT
from fastflow.errors import FastflowError

SETTINGS = [(section, entry) for section in sections().values() for entry in dataclasses.fields(section)]


def kind(section: type[Section], entry: dataclasses.Field) -> type | None:
    """int, float or str of its items; None for other settings."""
    hint = typing.get_type_hints(section)[entry.name]
    found = {hint, *typing.get_args(hint)} & {int, float, str}
    return found.pop() if found and typing.get_origin(hint) is not typing.Literal else None


def name_of(section: type[Section], entry: dataclasses.Field) -> str:
    return f"{section.section_name()}.{entry.name}"


def of_kind(*kinds):
    chosen = [setting for setting in SETTINGS if kind(*setting) in kinds]
    return pytest.mark.parametrize(("section", "entry"), chosen, ids=[name_of(*setting) for setting in chosen])


def make(section: type[Section], entry: dataclasses.Field, value) -> Section:
    if isinstance(entry.default, tuple):
        value = (value,) * max(len(entry.default), 1)
    return section(**{entry.name: value})


def refusal(section, entry, value) -> str:
    with pytest.raises(FastflowError) as caught:
        make(section, entry, value)
    message = str(caught.value)
    assert message.startswith(f"{name_of(section, entry)} ") and len(message) < 300
    return message


@of_kind(int, float)
def test_a_bound_itself_counts_only_where_it_is_included(section, entry):
    for word, bound in entry.metadata["bounds"].items():
        if bound is None:
            continue
        bound = kind(section, entry)(bound)
        step = 1 if kind(section, entry) is int else abs(bound) * 1e-9 + 1e-300
        outside = bound + step if word in ("below", "at most") else bound - step
        assert f"must be {word}" in refusal(section, entry, outside)
        if word in ("at least", "at most"):
            make(section, entry, bound)
        else:
            assert f"must be {word}" in refusal(section, entry, bound)


@of_kind(int)
def test_a_count_that_nothing_can_hold(section, entry):
    most = entry.metadata["bounds"]["at most"]
    make(section, entry, LARGEST_INTEGER if most is None else int(most))
    for value in (LARGEST_INTEGER + 1 if most is None else int(most) + 1, 10**40, 10**400):
        assert "at most" in refusal(section, entry, value)


@of_kind(float)
def test_no_number(section, entry):
    for value in (math.nan, math.inf, -math.inf):
        assert "must be" in refusal(section, entry, value)


@of_kind(str)
def test_no_text(section, entry):
    assert "NUL" in refusal(section, entry, "a\0b")
    assert "not text" in refusal(section, entry, "a\ud800")
    assert "characters" in refusal(section, entry, "a" * (LONGEST_TEXT + 1))
    make(section, entry, "é\u202e\x1b" + "a" * 1000)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1: 2}, "has the key 1, but keys must be text"),
        ({"a": {None: 2}}, "has the key None"),
        ({"a": [b"x"]}, "holds a bytes"),
        ({"a": {1, 2}}, "holds a set"),
        ({"a": math.inf}, "must hold finite numbers"),
        ({"a": "\ud800"}, "not text"),
        ({"a\0": 1}, "NUL"),
    ],
)
def test_a_mapping_that_json_does_not_hold(value, words):
    with pytest.raises(FastflowError, match=r"^data\.template_arguments ") as caught:
        DataConfig(template_arguments=value)
    assert words in str(caught.value)


def test_a_mapping_without_end():
    endless: dict = {}
    endless["self"] = endless
    with pytest.raises(FastflowError, match=f"nested more than {DEEPEST} levels deep"):
        DataConfig(template_arguments=endless)
