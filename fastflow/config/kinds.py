"""The kinds of values that settings take: whether a value is of one, and what a kind is called in an error."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
MAPPING = "a mapping, as in {name: value}"


def called(hint: Any) -> str | None:
    """Name what a type takes; None for a type that has no words, such as choices."""
    kinds = [one for one in _alternatives(hint) if one is not type(None)]
    if len(kinds) != 1:
        return None
    origin, items = typing.get_origin(kinds[0]), typing.get_args(kinds[0])
    if origin is tuple:
        what = "texts" if items[0] is str else "numbers"
        return f"a list of {what}" if items[-1] is ... else f"a list of {len(items)} {what}"
    return MAPPING if origin is Mapping else WORDS.get(kinds[0])


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. A whole number is a number too; true and false are none."""
    return any(_is_one(value, kind) for kind in _alternatives(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of `A | B`; otherwise the type itself."""
    one_type = isinstance(hint, type) or typing.get_origin(hint) in (tuple, Mapping, typing.Literal)
    return (hint,) if one_type else typing.get_args(hint)


def _is_one(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        items = typing.get_args(kind)
        items = items[:1] * len(value) if isinstance(value, tuple) and items[-1] is ... else items
        return isinstance(value, tuple) and len(value) == len(items) and all(map(fits, value, items))
    if kind is float:
        kind = (int, float)
    return isinstance(value, origin or kind) and (kind is bool or not isinstance(value, bool))
