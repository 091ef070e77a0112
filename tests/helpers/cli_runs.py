"""`fastflow train` in a process of its own, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from preloaded import Preloaded, can_be_forked
from small_models import save_model

ROOT = Path(__file__).resolve().parents[2]


def settings(home: Path, **changes) -> dict[str, object]:
    """Settings of a tiny run in `home/run`; makes model and prompts in `home` where they are missing."""
    if not (home / "model").exists():
        save_model(home / "model")
    if not (home / "prompts.jsonl").exists():
        (home / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(10)))
    tiny = {
        "model.path": home / "model",
        "model.device": "cpu",
        "data.path": home / "prompts.jsonl",
        "rollout.max_response_tokens": 6,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 3,
        "optim.lr": 1e-3,
        "objective.alpha": 2,
        "run.steps": 3,
        "run.output": home / "run",
        "run.threads": 1,
        "run.report": "false",
    }
    return {**tiny, **{name.replace("__", "."): value for name, value in changes.items()}}


def options(values: dict[str, object]) -> list[str]:
    return ["train", *(f"--{name}={value}" for name, value in values.items())]


def start(
    arguments: Sequence[str], *, before: Sequence[str] = (), program: str = "", new: bool = False, **popen
) -> subprocess.Popen | Preloaded:
    """The command in a process. before: a command in front of it. program: Python that runs first in the process.
    new: starts Python as users do; otherwise the process is forked from one that has its imports done, where it can be.
    """
    path = os.pathsep.join(entry for entry in (str(ROOT), *sys.path) if entry)
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": {**os.environ, "PYTHONPATH": path, "TERM": "dumb", "COLUMNS": "400"},
        **popen,
    }
    if not (new or before) and can_be_forked(options["env"]):
        return Preloaded(arguments, program=program, path=path, **options)
    code = f"{program}\nimport sys\nfrom fastflow.cli import main\nsys.exit(main({list(arguments)!r}))"
    return subprocess.Popen([*before, sys.executable, "-c", code], **options)


def wait_for(condition, process: subprocess.Popen | Preloaded, seconds: float = 120) -> None:
    """Until the condition holds; fails with the process's output where it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.02)


def lines_in(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
