"""Files of the working directory that have the names of Python's own modules: no child imports them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastflow import children
from fastflow.data.gym import make_entries
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.sweep.runner import child_command
from fastflow.train.ranks.devices import run_on_devices


@pytest.fixture(autouse=True)
def crowded(tmp_path, monkeypatch) -> Path:
    """A working directory in which every module of the standard library has a namesake that fails."""
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # and put back what a test changes
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_module_with_its_arguments(tmp_path):
    (tmp_path / "in.json").write_text("[1]")
    done = subprocess.run(
        children.python_module("json.tool", "--compact", "in.json"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done.stderr


def test_a_folder_that_this_process_looks_in_is_looked_in(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_reward.py").write_text("print('found')")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    command = children.python_module("own_reward")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=children.same_path())
    assert done.stdout.strip() == "found", done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no such variable")
def test_the_variable_for_commands_of_others(monkeypatch):
    monkeypatch.delenv(children.SAFE_PATH, raising=False)
    with children.safe_path():
        done = subprocess.run([sys.executable, "-c", "import random"], capture_output=True, check=False)
    assert done.returncode == 0 and children.SAFE_PATH not in os.environ


def test_graders():
    with GraderPool(("math",), workers=1) as pool:
        assert list(pool.grade([Item("exact", "1", "1")])) == [Verdict.RIGHT]


def test_entries_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    assert len(list(make_entries("gym:basic_arithmetic", None, limit=2))) == 2


def test_a_run_of_a_sweep():
    command = child_command(Path("missing.yaml"), devices=1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=children.same_path())
    assert done.returncode == 2 and "missing.yaml" in done.stderr and "working directory" not in done.stderr


@pytest.mark.distributed
def test_ranks(capfd):
    assert run_on_devices(1, ["--config", "missing.yaml"]) == 2
    assert "missing.yaml" in (said := capfd.readouterr().err) and "working directory" not in said
