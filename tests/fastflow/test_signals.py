"""SIGTERM, SIGHUP and Ctrl-C end a run alike: the policy is saved, and the exit code is 128 and the signal's number."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time

import pytest
from safetensors.torch import load_file

from cli_runs import lines_in, options, settings, start, wait_for
from fastflow.counted import counted

pytestmark = pytest.mark.slow  # a process a test; some of them new, as users start them, and the others forked

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM", signal.SIGHUP: "stopped by SIGHUP"}
# every save takes seconds, in pieces that a signal can arrive between
SLOW_SAVES = """
import time
from pathlib import Path
import fastflow.train.saves.checkpoint as checkpoint
write_tensors = checkpoint.write_tensors
def slowly(directory, *arguments):
    (directory.parents[3] / "saving").touch()
    for _ in range(30):
        time.sleep(0.1)
    write_tensors(directory, *arguments)
checkpoint.write_tensors = slowly
from fastflow.train.saves.saver import Saver
wait = Saver.wait
def told(saver):
    if saver._writing is not None:
        (saver._run / f"waiting-{saver._writing.step}").touch()
    wait(saver)
Saver.wait = told
"""


@pytest.fixture
def begin(tmp_path):
    """Starts a long run, and returns it once it has made some steps."""
    running = []

    def run(steps: int = 2, *, before=(), program: str = "", new: bool = False, popen=None, **changes):
        arguments = options(settings(tmp_path, **{"run__steps": 100_000, **changes}))
        running.append(start(arguments, before=before, program=program, new=new, **(popen or {})))
        wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") >= steps, running[-1])
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def state_of(run) -> dict:
    return json.loads(((run / "policy").resolve().parent / "trainer" / "state.json").read_text())


@pytest.mark.parametrize("number", NAMES)
def test_a_signal_saves_what_the_run_has_reached(number, begin, tmp_path):
    process = begin(new=number == signal.SIGTERM)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, (out, err)
    assert "Traceback" not in out + err
    run = tmp_path / "run"
    step, updates = state_of(run)["step"], state_of(run)["updates"]
    assert err.splitlines()[-1] == (
        f"fastflow: {NAMES[number]}; the policy after step {step} ({counted(updates, 'update')}) is in "
        f"{run / 'policy'}; to go on: fastflow train --resume {run}"
    )
    assert step in (lines_in(tmp_path / "run" / "metrics.jsonl"), lines_in(tmp_path / "run" / "metrics.jsonl") + 1)
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("number", NAMES)
def test_a_signal_while_the_model_loads_ends_the_run_with_a_sentence(number, tmp_path):
    program = """
import fastflow.models.opening, time
from pathlib import Path
def load(*arguments):
    Path(HOME, "loading").touch()
    time.sleep(60)
fastflow.models.opening.load_causal_lm = load
""".replace("HOME", repr(str(tmp_path)))
    process = start(options(settings(tmp_path)), program=program)
    wait_for((tmp_path / "loading").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"fastflow: {NAMES[number]}"
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()


def test_nohup_stays_in_force(begin, tmp_path):
    process = begin(before=["nohup"], popen={"stdin": subprocess.DEVNULL})
    process.send_signal(signal.SIGHUP)
    steps = lines_in(tmp_path / "run" / "metrics.jsonl")
    wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") > steps + 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_signals_that_come_together_save_once(begin, tmp_path):
    """As systemd sends them, or a scheduler that asks again before it kills."""
    process = begin()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (129, 130, 143)
    assert "the policy after step" in err and "Traceback" not in out + err
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")


@pytest.mark.parametrize("number", NAMES)
def test_a_save_is_finished_before_the_run_ends(number, begin, tmp_path):
    """Step 2 is done and waits until step 1 is saved: both saves come to their end, and no third begins."""
    process = begin(2, program=SLOW_SAVES, run__save_every=1)
    wait_for((tmp_path / "run" / "waiting-1").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{NAMES[number]} while saving the policy, which is finished first" in err
    assert state_of(tmp_path / "run")["step"] == 2
    assert "the policy after step 2 (2 updates) is in" in err


def test_a_second_ctrl_c_during_a_save_leaves_the_earlier_save_whole(begin, tmp_path):
    run = tmp_path / "run"
    process = begin(1, program=SLOW_SAVES.replace("range(30)", "range(100)"), run__save_every=1)
    wait_for((run / "waiting-2").exists, process)
    before = load_file(run / "checkpoints" / "step-1" / "policy" / "model.safetensors")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the save was given up; the policy after step 1 (1 update) is in" in err
    assert "Traceback" not in out + err
    after = load_file(run / "policy" / "model.safetensors")
    assert all(before[name].equal(after[name]) for name in before)
    assert state_of(run)["step"] == 1
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["step-1"]


def test_a_rescue_can_be_given_up_too(begin, tmp_path):
    """Ctrl-C ends the run; during the save that this brings, the next is noted, and the one after it is obeyed."""
    process = begin(1, program=SLOW_SAVES)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: list((tmp_path / "run").glob("waiting-*")), process)
    for _ in range(2):
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted while saving the policy, which is finished first; press Ctrl-C to give it up" in err
    assert err.splitlines()[-1] == "fastflow: interrupted; the save was given up; no policy was saved before"
    assert "Traceback" not in out + err


def test_schedulers_that_ask_twice_do_not_give_a_save_up(begin, tmp_path):
    process = begin(1, program=SLOW_SAVES, run__save_every=1)
    wait_for((tmp_path / "run" / "saving").exists, process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"the policy after step {state_of(tmp_path / 'run')['step']} (" in err


def test_a_terminal_that_closes_saves_the_policy(begin, tmp_path):
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = begin(
        program="import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)", popen={**streams, "text": False}
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=60) == 129
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    """`fastflow train ... | head -1`"""
    ours, theirs = os.pipe()
    process = start(options(settings(tmp_path)), stdout=theirs)
    os.close(theirs)
    os.close(ours)
    _, err = process.communicate(timeout=120)
    assert lines_in(tmp_path / "run" / "metrics.jsonl") == 3, err
    assert load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert "Traceback" not in err
