"""Errors that are a user's to mend, and imports that are a user's to install."""

from __future__ import annotations

import importlib
from types import ModuleType


class FastflowError(Exception):
    """Something the user can mend. The message says what was wrong, where, and what to do.

    The command line prints it on one line and exits with code 2, or its own `exit_code`; no traceback.
    """

    exit_code = 2


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FastflowError(f'{purpose} needs the package {module}: pip install "fastflow[{extra}]"') from error
