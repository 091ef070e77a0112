"""Names the installed packages that have a known vulnerability, by pip-audit. Exits with 1 where there is one.

    python .ci/audit.py

Says in one line that it was skipped where pip-audit or its data cannot be had in time. pip-audit gets its own
directory: nothing of what it looks at changes.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
import time
from typing import Any

LIMIT = 18.0  # seconds in all
IGNORED: dict[str, str] = {}  # a vulnerability's id -> why it does not concern fastflow


def main() -> int:
    deadline = time.monotonic() + LIMIT
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        pip = ["pip", "install", "--quiet", "--retries", "0", "--no-compile", "--target", folder, "pip-audit"]
        if run(pip, {}, deadline) is None:
            return skip("pip-audit cannot be installed here in time")
        where = ["--path", site.getsitepackages()[0], "--skip-editable"]
        audit = ["pip_audit", *where, "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
        found = run(audit, {"PYTHONPATH": folder}, deadline)
    try:
        packages = json.loads(found or "")["dependencies"]
    except (ValueError, KeyError):
        return skip("pip-audit cannot reach its data here in time")
    return report(packages)


def run(module: list[str], environment: dict[str, str], deadline: float) -> str | None:
    """Run a Python module until the deadline. Returns what it printed; None where it failed without a result."""
    try:
        done = subprocess.run(  # noqa: S603, pip and pip-audit, and no shell
            [sys.executable, "-m", *module], env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=max(deadline - time.monotonic(), 0.1),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 or done.stdout else None


def report(packages: list[dict[str, Any]]) -> int:
    """Print what pip-audit found. Returns the exit code."""
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return skip(f"the package index here has no data on any of {len(packages)} packages")
    faults = [(package, flaw) for package in known for flaw in package["vulns"] if flaw["id"] not in IGNORED]
    for package, flaw in faults:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {flaw['id']}, mended in {mended}")
    print(f"{len(faults)} known vulnerabilities in {len(known)} of {len(packages)} packages")
    return 1 if faults else 0


def skip(reason: str) -> int:
    print(f"skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
