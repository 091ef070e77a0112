"""How a command reads its own options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fastflow.errors import FastflowError


class CommandParser(argparse.ArgumentParser):
    """Raises FastflowError instead of printing its usage and exiting. Its subcommands have the same class."""

    def error(self, message: str) -> NoReturn:
        raise FastflowError(f"{message}; see {self.prog} --help")
