"""Sweeps of stand-ins: processes that write a run's files as training does, in no time, or fail as told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

import cli_runs
from fastflow.sweep.request import SweepRequest, read_request

# alpha says how a stand-in behaves: 13 fails with a sentence, 14 is killed, 15 goes on until it is told to stop,
# 16 for ever
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
config = yaml.safe_load(Path(sys.argv[1]).read_text())
alpha, run = config["objective"]["alpha"], Path(config["run"]["output"])
def stop(number, frame):
    (run / "stopped").write_text(str(number))
    if alpha != 16:
        sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
run.mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file:
    file.write(json.dumps([os.getpid(), os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if alpha == 13:
    print("some words\\nfastflow: error: the disk has gone", flush=True)
    sys.exit(2)
if alpha == 14:
    os.kill(os.getpid(), signal.SIGKILL)
for step in range(1, config["run"]["steps"] + 1):
    with (run / "metrics.jsonl").open("a") as file:
        length = 10 * alpha + config["run"]["seed"] + step
        file.write(json.dumps({"step": step, "length_mean": length, "slope": alpha, "alarms": []}) + "\\n")
    (run / "status.json").write_text(json.dumps({"step": step}))
while alpha in (15, 16):
    time.sleep(0.02)
(run / "policy").mkdir(exist_ok=True)
"""


def stand_in(settings: Path, devices: int) -> list[str]:
    """In place of `fastflow.sweep.runner.child_command`."""
    return [sys.executable, "-c", STAND_IN, str(settings)]


def real_options(home: Path) -> list[str]:
    """Options of tiny runs that can really be trained, without alpha, seed and directory; makes model and prompts."""
    left_out = ("run.output", "objective.alpha")
    return [f"--{name}={value}" for name, value in cli_runs.settings(home).items() if name not in left_out]


def options(home: Path) -> list[str]:
    """Options of a sweep into home/sweep, whose model and prompts nobody has."""
    return [
        "--model.path=MODEL",
        "--data.path=no/DATA",
        "--run.steps=3",
        "--optim.lr=1e-3",
        f"--output={home / 'sweep'}",
    ]


def request(home: Path, *more: str) -> SweepRequest:
    """The same, read."""
    return read_request([*options(home), *more])


def starts(home: Path, name: str) -> list:
    """(process, OMP_NUM_THREADS) of each start of a run's stand-in."""
    file = home / "sweep" / "runs" / name / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def quiet() -> Console:
    """A console that keeps what it prints."""
    return Console(record=True, width=300, file=Path("/dev/null").open("w"))
