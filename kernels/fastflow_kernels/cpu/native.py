"""Finds the native library, loads it once, and says why where there is none.

It is optional. setup.py compiles `csrc/cpu` into `_native.so` in the package's folder where there is a C++ compiler.
`FASTFLOW_NATIVE=0` in the environment leaves it unused.
"""

import functools
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from fastflow_kernels.cpu.row_pass import NativeRowPass
from fastflow_kernels.shared_library import Unusable, load

__all__ = ["describe", "is_worth_mending", "library", "why_not"]

SWITCH = "FASTFLOW_NATIVE"
FILE = Path(__file__).parents[1] / "_native.so"
ABI_VERSION = 3  # FASTFLOW_ABI_VERSION in csrc/cpu/row_pass.h
REINSTALL = "pip install --force-reinstall --no-deps . in fastflow's source folder"


class _Outcome(NamedTuple):
    """Of the one attempt to load: the library, or why there is none, and whether the user should hear of that."""

    library: NativeRowPass | None
    reason: str | None = None
    is_worth_a_warning: bool = False


@functools.cache
def library() -> NativeRowPass | None:
    """Return the library, or None. Warns once where this machine lacks one that it could have."""
    outcome = _load()
    if outcome.is_worth_a_warning:
        warnings.warn(f"The CPU's ops run without native code: {outcome.reason}", RuntimeWarning, stacklevel=2)
    return outcome.library


def why_not() -> str | None:
    """Say what happened and what to do, in one sentence; None where the library is loaded."""
    return _load().reason


def is_worth_mending() -> bool:
    """Tell whether there is no library though this machine could have one, and nobody asked to go without."""
    return _load().is_worth_a_warning


def describe() -> str:
    """Say what was loaded, such as "avx512, loaded from .../_native.so"; where nothing was, why_not()'s reason."""
    found = _load()
    return str(found.reason) if found.library is None else f"{found.library.instruction_set}, loaded from {FILE}"


@functools.cache
def _load() -> _Outcome:
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"{SWITCH} must be 0 or 1, got {switch!r}; correct it or unset it.")
    if switch == "0":
        return _Outcome(None, f"{SWITCH}=0 leaves the native library unused; unset it to use it.")
    if sys.platform == "win32":
        return _Outcome(None, "fastflow has no native library for Windows; use WSL for it.")
    if not FILE.exists():
        reason = (
            "fastflow was installed without its native library (it found no working C++ compiler, or was told not to)"
        )
        return _missing(f"{reason}; install a C++ compiler and run {REINSTALL}")
    try:
        shared = load(
            FILE, name="fastflow's native library", version_function="fastflow_abi_version", version=ABI_VERSION
        )
    except Unusable as reason:
        return _missing(f"{reason}; run {REINSTALL}")
    return _Outcome(NativeRowPass(shared))


def _missing(reason: str) -> _Outcome:
    return _Outcome(None, f"{reason}, or set {SWITCH}=0 to do without.", is_worth_a_warning=True)
