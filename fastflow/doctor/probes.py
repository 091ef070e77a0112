"""How the doctor looks at the installation: metadata, and processes that may crash or hang without harm."""

from __future__ import annotations

import importlib.metadata
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
    """output: what the process printed. error: the last line it complained with, empty when it worked."""

    worked: bool
    output: str = ""
    error: str = ""


def run_python(code: str, seconds: float = SECONDS) -> Outcome:
    """Run code in a fresh interpreter, from an empty directory so that nothing near shadows a package."""
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                cwd=nowhere,
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, error=f"no answer within {seconds:g} seconds")
    if done.returncode == 0:
        return Outcome(True, done.stdout.strip())
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Outcome(False, done.stdout.strip(), lines[-1] if lines else f"it died with exit code {done.returncode}")


def import_of(module: str, *, also: str = "") -> Outcome:
    """Whether a module can be imported; `also` is code to run after it."""
    return run_python(f"import {module}\n{also}")


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements_of(distribution: str) -> list[Requirement]:
    """What an installed distribution needs on this machine, its extras aside."""
    from packaging.requirements import Requirement

    listed = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    return [entry for entry in listed if entry.marker is None or entry.marker.evaluate({"extra": ""})]


def unmet(requirements: list[Requirement]) -> list[str]:
    """One sentence for each requirement that the installed versions do not meet."""
    complaints = []
    for requirement in requirements:
        version = version_of(requirement.name)
        if version is None:
            complaints.append(f"{requirement.name}{requirement.specifier} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            complaints.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return complaints
