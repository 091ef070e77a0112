"""Look at the installation: read metadata, and run code in processes that may crash or hang without harm."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a process ended. output: what it printed. error: the last line of its errors; empty where it worked."""

    worked: bool
    output: str = ""
    error: str = ""


def run_python(code: str, seconds: float = SECONDS) -> Outcome:
    """Run code in a fresh interpreter, in an empty directory so that no file there shadows a package.

    After `seconds`, kill it and the processes that it started.
    """
    with (
        tempfile.TemporaryDirectory() as nowhere,
        subprocess.Popen(  # noqa: S603, our own program, and no shell
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=nowhere,
            start_new_session=True,
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            output, _ = process.communicate()
            return Outcome(False, output.strip(), f"no answer within {seconds:g} seconds")
        except BaseException:  # Ctrl-C reaches only this process
            _kill_group(process)
            raise
    if process.returncode == 0:
        return Outcome(True, output.strip())
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return Outcome(False, output.strip(), lines[-1] if lines else f"it died with exit code {process.returncode}")


def _kill_group(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own session; nobody has waited for it yet
    else:
        process.kill()


def import_of(module: str, *, also: str = "") -> Outcome:
    """Import a module in a fresh interpreter. also: code to run after the import."""
    return run_python(f"import {module}\n{also}")


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution; None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements_of(distribution: str) -> list[Requirement]:
    """Return what an installed distribution needs on this machine, without its extras."""
    from packaging.requirements import Requirement

    listed = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    return [entry for entry in listed if entry.marker is None or entry.marker.evaluate({"extra": ""})]


def unmet(requirements: list[Requirement]) -> list[str]:
    """Return one sentence for each requirement that the installed versions do not meet."""
    complaints = []
    for requirement in requirements:
        version = version_of(requirement.name)
        if version is None:
            complaints.append(f"{requirement.name}{requirement.specifier} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            complaints.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return complaints
