"""Reads YAML from people: plain values only, within bounds, and each key once."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path
from typing import Any

import yaml

from fastflow.errors import FastflowError
from fastflow.visible import CONTROL

LARGEST = 2**18  # bytes of a file; settings take a few thousand
MOST_VALUES = 10_000  # with every alias written out
MOST_BRACKETS = 500  # open at once
OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
OTHER_FORMATS = (".toml", ".ini", ".cfg")
LONGEST_SILENCE = 10.0  # seconds until a pipe without a writer counts as empty
# What PyYAML raises for a plain value that does not fit its tag, such as !!int '' or !!timestamp x
WRONG_TAG = (AttributeError, IndexError, KeyError, OverflowError, TypeError)
EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")  # such as 1e-6, which PyYAML takes for a text
NUMBER_LIKE = re.compile(r"[-+.]*[0-9_][-+.:_0-9a-fA-FxXoO]*$")


def read_text(file: Path) -> str:
    """Read a file, a pipe such as `<(command)`, or a device, up to a bound.

    Raises OSError where it cannot be opened or read, ValueError for what is too large, silent or not UTF-8.
    """
    content = b""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # which does not wait for the writer of a pipe
    try:
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while len(content) <= LARGEST:
            if not ready.poll(LONGEST_SILENCE * 1000):
                raise ValueError(f"it is a pipe into which nobody wrote for {LONGEST_SILENCE:g} seconds")
            chunk = os.read(descriptor, LARGEST + 1)
            if not chunk:
                return content.decode()
            content += chunk
    finally:
        os.close(descriptor)
    raise ValueError(f"it is larger than {LARGEST // 1024} KiB")


def load(text: str) -> Any:
    """Parse one YAML document of plain values. Raises ValueError, in one line, for anything else."""
    try:
        _check_depth(text)
        loader = _UniqueKeyLoader(text)  # which refuses unprintable characters
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {}, set())
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read; write sections of plain values") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except WRONG_TAG as error:
        raise ValueError("a value does not fit the tag (!!name) in front of it; leave the tag out") from error


def dump(value: Any) -> str:
    """Write plain values as YAML that `load` and jsonargparse read back unchanged, and a terminal shows as text."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if CONTROL.search(text):
        return yaml.dump(value, Dumper=_Dumper, sort_keys=False)  # all beyond ASCII escaped
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some reader of YAML takes for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER_LIKE, list("-+0123456789."))


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but it refuses two equal keys, where PyYAML keeps the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list, set)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is set twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def _check_depth(text: str) -> None:
    """Raise RecursionError for more open brackets than anyone needs, before PyYAML spends seconds on them."""
    if text.count("[") + text.count("{") <= MOST_BRACKETS:
        return
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):  # which knows the brackets that stand in a text
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MOST_BRACKETS:
            raise RecursionError


def _written_out(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Count the values below a node, as if every alias were written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        raise ValueError("an anchor (&name) contains itself")
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_written_out(part, known, above | {id(node)}) for part in below)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values, with its aliases (*name) written out")
    return known[id(node)]


def read_sections(file: Path, *, such_as: str) -> dict[str, Any]:
    """Read the file given by --config as a tree. such_as: sections that it may have. Raises FastflowError."""
    try:
        tree = load(read_text(file)) or {}
    except OSError as error:
        raise FastflowError(f"cannot read the configuration {file}: {error.strerror}; check --config") from error
    except ValueError as error:
        if file.suffix.lower() in OTHER_FORMATS:
            raise FastflowError(_other_format(file)) from error
        raise FastflowError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        if file.suffix.lower() in OTHER_FORMATS:
            raise FastflowError(_other_format(file))
        raise FastflowError(f"{file} must hold sections such as {such_as}, not a {type(tree).__name__}")
    return tree


def _other_format(file: Path) -> str:
    return f"{file} is not YAML, and settings are read from YAML alone; write each section as in optim: {{lr: 1e-6}}"
