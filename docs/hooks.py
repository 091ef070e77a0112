"""Fills what is generated: settings, ops from their docstrings, plots from bench/results, the README's demo section."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

_STANDS_IN = re.compile(r"^.+ <!-- made: (\w+) -->$", re.MULTILINE)  # a line for those who read the page unbuilt


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once: adds the plots."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(Path(__file__).parent))
    from figures import draw

    with tempfile.TemporaryDirectory() as folder:
        for file in draw(Path(folder)):
            files.append(File.generated(config, f"images/{file.name}", content=file.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    makers = {"settings": settings, "ops": ops, "demo": demo}
    return _STANDS_IN.sub(lambda found: makers[found[1]](), markdown)


def settings() -> str:
    """A section for each section of the configuration, with a table of its settings."""
    from fastflow.config.help import help_text
    from fastflow.config.schema import sections

    parts = []
    for name, section in sections().items():
        hints = typing.get_type_hints(section)
        rows = [
            "| "
            + " | ".join(
                [
                    f"`{name}.{entry.name}`",
                    _type(hints[entry.name]),
                    _default(entry.default),
                    _cell(help_text(entry)),
                ]
            )
            + " |"
            for entry in dataclasses.fields(section)
        ]
        table = "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"## {name}\n\n{section.__doc__}\n\n{table}")
    return "\n\n".join(parts)


def ops() -> str:
    """Signature and docstring of each public name of `fastflow_kernels`."""
    import fastflow_kernels

    parts = []
    for name in fastflow_kernels.__all__:
        found = getattr(fastflow_kernels, name)
        documentation = inspect.cleandoc(found.__doc__ or "")
        parts.append(f"## `{name}`\n\n```text\n{documentation}\n```")
    return "\n\n".join(parts)


def demo() -> str:
    """The section of README.md on what the demo shows."""
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    title = "## What the demo shows\n"
    return title + readme.split(title)[1].split("\n## ")[0]


def _type(hint: object) -> str:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return _cell(" \\| ".join(f"`{choice}`" for choice in choices))
    return f"`{str(getattr(hint, '__name__', hint)).replace('|', 'or').replace('typing.', '')}`"


def _default(value: object) -> str:
    return "none" if value is None else f"`{value!r}`"


def _cell(text: str) -> str:
    return text.replace("\n", " ") if "\\|" in text else text.replace("|", "\\|").replace("\n", " ")
