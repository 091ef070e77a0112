"""How one setting is declared and checked: default, help, unit and range in one place."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from fastflow.config.kinds import called, fits
from fastflow.errors import FastflowError

LARGEST_INTEGER = 2**31 - 1  # of a setting without an upper bound of its own
LONGEST_TEXT = 100_000  # characters
LONGEST_SHOWN = 100  # characters of a value in an error
DEEPEST = 20  # levels of a mapping


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declare a dataclass field with help text, unit and range. The range of a tuple holds for each of its items."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, "bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of every section of the configuration. Its construction checks the type, range and choices of each field."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            name, value = f"{self.section_name()}.{entry.name}", getattr(self, entry.name)
            if isinstance(value, list) and fits(tuple(value), hints[entry.name]):
                value = tuple(value)
                object.__setattr__(self, entry.name, value)  # as a file or a command line gives it
            _check_type(name, value, hints[entry.name], entry.default)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str):
                    _check_text(name, item)
                elif isinstance(item, (int, float)) and not isinstance(item, bool):
                    _check_range(name, item, entry.metadata["bounds"])
                elif isinstance(item, Mapping):
                    _check_plain(name, item)

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, by their dotted names."""
        return {
            f"{self.section_name()}.{entry.name}": value
            for entry in dataclasses.fields(self)
            if (value := getattr(self, entry.name)) != entry.default
        }

    @classmethod
    def section_name(cls) -> str:
        return cls.__name__.removesuffix("Config").lower()


def _check_type(name: str, value: Any, hint: Any, default: Any) -> None:
    if value is None and type(None) not in typing.get_args(hint):
        raise FastflowError(f"{name} is null, but has no such value; leave it out to keep {default!r}")
    if fits(value, hint):
        return
    if typing.get_origin(hint) is typing.Literal:
        raise FastflowError(f"{name} is {value!r}: {suggest(str(value), typing.get_args(hint))}")
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]} (cut here)"
    raise FastflowError(f"{name} is {shown}, but must be {called(hint)}")


def _check_text(name: str, text: str) -> None:
    """Raise FastflowError for what neither a tokenizer takes nor a file holds, such as a byte that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FastflowError(f"{name} holds {text[error.start]!a}, which is not text; write it in UTF-8") from error
    if "\0" in text:
        raise FastflowError(f"{name} holds the character NUL (\\x00), which no path can hold; leave it out")
    if len(text) > LONGEST_TEXT:
        raise FastflowError(f"{name} has {len(text)} characters, but must have at most {LONGEST_TEXT}")


def _check_range(name: str, number: float, bounds: dict[str, float | None]) -> None:
    shown = f"{number:g}" if isinstance(number, float) or abs(number) < 10**6 else str(number)[:40]
    if isinstance(number, float) and not math.isfinite(number):
        raise FastflowError(f"{name} is {shown}, but must be a finite number")
    holds = {
        "above": lambda bound: number > bound,
        "at least": lambda bound: number >= bound,
        "below": lambda bound: number < bound,
        "at most": lambda bound: number <= bound,
    }
    for word, bound in bounds.items():
        if bound is not None and not holds[word](bound):
            raise FastflowError(f"{name} is {shown}, but must be {word} {bound:g}")
    if isinstance(number, int) and bounds["at most"] is None and number > LARGEST_INTEGER:
        raise FastflowError(f"{name} is {shown}, but must be at most {LARGEST_INTEGER}")


def _check_plain(name: str, value: Any, depth: int = 0) -> None:
    """Raise FastflowError for a mapping that JSON could not hold, and no file of settings could repeat."""
    if depth > DEEPEST:
        raise FastflowError(f"{name} is nested more than {DEEPEST} levels deep; flatten it")
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise FastflowError(f"{name} has the key {key!r}, but keys must be text; put it into quotes")
            _check_text(name, key)
            _check_plain(name, inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_plain(name, inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FastflowError(f"{name} holds {value}, but must hold finite numbers")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise FastflowError(
            f"{name} holds a {type(value).__name__}, but must hold texts, numbers, booleans, lists and mappings; put "
            "it into quotes"
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known names, otherwise all of them."""
    known = [str(entry) for entry in known]
    near = [entry for entry in known if entry.split(".")[-1] == name.split(".")[-1]]  # under another section
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(sorted(known))}" if len(known) <= 12 else "see --help for the known names"
