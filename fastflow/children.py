"""Starts Python in processes of their own, which import what this one does and nothing else.

`python -m` and `python -c` put the working directory first on sys.path: there a user's random.py would stand in for the
standard library's. The command `fastflow` does not look there, so its children must not.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"  # Python 3.11 and later read it, in place of this module's own way
_RUN = (  # for Python 3.10: sys is built in, and the first module that is looked for is runpy
    "import sys; sys.path[:] = filter(None, sys.path); name = sys.argv.pop(1); import runpy; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as `python -m` would, without the working directory on sys.path."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", name, *arguments]
    return [sys.executable, "-c", _RUN, name, *arguments]


def same_path(**more: str) -> dict[str, str]:
    """Return an environment in which a child finds the modules that this process finds. more: other variables.

    The standard library is left out: what the child starts may be another version of Python.
    """
    library = sysconfig.get_path("stdlib")
    own = {library, os.path.join(library, "lib-dynload")}
    others = [entry for entry in sys.path if entry and entry not in own]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(others), **more}


@contextmanager
def safe_path() -> Iterator[None]:
    """Give children of this block, and theirs, an environment that keeps the working directory off sys.path.

    For a library that writes its children's command itself. Python 3.10 does not know the variable.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
