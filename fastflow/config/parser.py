"""How a command reads its own options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from fastflow.errors import FastflowError


class CommandParser(argparse.ArgumentParser):
    """Raises FastflowError instead of printing its usage and exiting. Its subcommands have the same class."""

    def error(self, message: str) -> NoReturn:
        raise FastflowError(f"{message}; see {self.prog} --help")


def take_option(name: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `name VALUE` or `name=VALUE` out of the arguments. Returns the value, and the other arguments.

    The value is None without the option, and empty where none follows it. The last one counts.
    """
    rest: list[str] = []
    value: str | None = None
    words = iter(arguments)
    for word in words:
        if word == name:
            value = next(words, "")
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
        else:
            rest.append(word)
    return value, rest
