"""A few of the kills that `python -m tests.chaos` makes by the hundred."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cli_runs import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        ["--kills", "6", "--seed", "3"],
        ["--every-operation", "--seed", "2", "--first", "30", "--stride", "41"],
        ["--ranks", "2", "--kills", "3", "--seed", "5"],
    ],
    ids=["at random", "at file operations", "of ranks"],
)
def test_killed_runs_go_on(options):
    path = os.pathsep.join(entry for entry in (str(ROOT), *sys.path) if entry)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options], cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all resumed" in done.stdout and not done.stdout.startswith("0 kills")
