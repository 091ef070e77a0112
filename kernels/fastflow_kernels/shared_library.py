"""Loads a library of native code that was compiled with fastflow, and says what is wrong with one that cannot serve."""

import ctypes
from pathlib import Path

import torch  # noqa: F401  before any library: its OpenMP must be loaded, or the library brings a second one


class Unusable(Exception):
    """A library that does not load, or is of another fastflow; the message says which."""


def load(file: Path, *, name: str, version_function: str, version: float) -> ctypes.CDLL:
    """Load a library whose interface has this version.

    Args:
        file: of the library.
        name: what messages call it.
        version_function: the library's own, which returns its version.
        version: the only one that this fastflow can call.

    Raises:
        Unusable: the file is no library, or has another version.
    """
    try:
        library = ctypes.CDLL(str(file))
        found = getattr(library, version_function)()
    except (OSError, AttributeError) as error:
        raise Unusable(f"{name} does not load ({error})") from error
    if found != version:
        raise Unusable(f"{name} has interface {found}, and this fastflow needs {version}")
    return library
