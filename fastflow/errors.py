"""Errors that a user can mend, and optional packages that a user can install."""

from __future__ import annotations

import contextlib
import errno
import importlib
from collections.abc import Iterator
from types import ModuleType

# what the system says of a path that it does not even look up
_NO_LOOKUP = {
    errno.ENAMETOOLONG: "its name is too long for the file system; check the path",
    errno.EACCES: "this user may not look into its directory; change the permissions, or give another path",
}


class FastflowError(Exception):
    """Something that the user can mend. The message says what was wrong, where, and what to do.

    The command line prints it on one line, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2
    silent = False  # whether another process says it
    on_all_ranks = False  # whether every rank of the run stops with it, at the same place


def message_of(error: BaseException, *, most: int = 300, typed: bool = False) -> str:
    """Say in one line what an exception says, cut after `most` characters; its type where it says nothing.

    typed: whether its type comes first in any case.
    """
    name, text = type(error).__name__, " ".join(str(error).split())
    return (f"{name}: {text}" if typed and text else text or name)[:most]


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency. Raises FastflowError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FastflowError(f'{purpose} needs the package {module}: pip install "fastflow[{extra}]"') from error


@contextlib.contextmanager
def named_paths() -> Iterator[None]:
    """Raise FastflowError where a path that the user gave cannot be looked up, wherever that is noticed."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno not in _NO_LOOKUP:
            raise
        raise FastflowError(f"cannot use the path {error.filename}: {_NO_LOOKUP[error.errno]}") from error
