"""Says in words that a setting's value has the wrong type, or is none of its choices, where jsonargparse found it."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any

from fastflow.config.kinds import called
from fastflow.config.setting import Section, suggest

REFUSED = re.compile(r'Parser key "(?P<section>\w+)\.(?P<entry>\w+)": .*(?:Got|Given) value: (?P<value>.*)', re.DOTALL)
LONGEST_REASON = 500  # characters of a parser's message, which may repeat a long value


def in_words(error: Exception, sections: Mapping[str, type[Section]]) -> str:
    """Return a parser's error in one line, with setting, value and type in words where it is about those."""
    text = _in_words(" ".join(str(error).replace("typing.", "").split()), sections)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} (cut here)"


def _in_words(message: str, sections: Mapping[str, type[Section]]) -> str:
    found = REFUSED.search(message)
    if found is None or (section := sections.get(found["section"])) is None:
        return message
    hint = typing.get_type_hints(section).get(found["entry"])
    expected = _expected(hint, found["value"])
    return f"{found['section']}.{found['entry']} is {found['value']!r}, but must be {expected}" if expected else message


def _expected(hint: Any, value: str) -> str | None:
    """Say what a type takes; None for a type that has no words."""
    if typing.get_origin(hint) is typing.Literal:
        *others, last = map(str, typing.get_args(hint))
        near = suggest(value, [*others, last])
        asked = f": {near}" if near.startswith("did you mean") else ""
        return f"{', '.join(others)} or {last}{asked}" if others else f"{last}{asked}"
    return called(hint)
