"""Errors that a user can mend, and optional packages that a user can install."""

from __future__ import annotations

import importlib
from types import ModuleType


class FastflowError(Exception):
    """Something that the user can mend. The message says what was wrong, where, and what to do.

    The command line prints it on one line, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2
    silent = False  # whether another process says it
    on_all_ranks = False  # whether every rank of the run stops with it, at the same place


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency. Raises FastflowError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FastflowError(f'{purpose} needs the package {module}: pip install "fastflow[{extra}]"') from error
