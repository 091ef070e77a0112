"""Processes of a sweep: what is done stays done, what fails is named, and nothing goes on alone."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time

import pytest

from fastflow.errors import FastflowError
from fastflow.interrupt import ONE_PRESS_SECONDS, RunStopped, stop_on_signals
from fastflow.run.lock import LOCK_FILE
from fastflow.sweep import command, runner
from fastflow.sweep.machine import group_of, share_of
from sweep_runs import quiet, request, stand_in, starts


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(runner, "child_command", stand_in)


def sweep(home, *more) -> tuple[int, str]:
    """Exit code and output of a sweep."""
    console = quiet()
    code = command.run(request(home, *more), console)
    return code, console.export_text()


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_runs_are_carried_out_and_only_once(tmp_path):
    grid = ("--grid", "objective.alpha=1,2", "--seeds=0,1")
    code, told = sweep(tmp_path, *grid, "--jobs=2")
    assert code == 0 and "alpha-2_seed-1: done" in told and "4 of 4 runs" in told
    names = ["alpha-1_seed-0", "alpha-2_seed-0", "alpha-1_seed-1", "alpha-2_seed-1"]
    assert [len(starts(tmp_path, name)) for name in names] == [1] * 4
    code, told = sweep(tmp_path, *grid)
    assert code == 0 and "4 done already" in told
    assert [len(starts(tmp_path, name)) for name in names] == [1] * 4
    assert "| alpha 2 | 2 |" in (tmp_path / "sweep" / "results.md").read_text()


def test_a_run_with_other_settings_is_not_done(tmp_path):
    sweep(tmp_path, "--grid", "objective.alpha=1,2")
    sweep(tmp_path, "--grid", "objective.alpha=1,2", "--optim.eps=1e-6")
    assert len(starts(tmp_path, "alpha-1")) == 2


def test_a_run_whose_policy_is_gone_is_not_done(tmp_path):
    sweep(tmp_path, "--grid", "objective.alpha=1,2")
    (tmp_path / "sweep/runs/alpha-1/policy").rmdir()
    sweep(tmp_path, "--grid", "objective.alpha=1,2")
    assert [len(starts(tmp_path, name)) for name in ("alpha-1", "alpha-2")] == [2, 1]


@pytest.mark.parametrize(
    ("file", "words"), [("config.yaml", "the directory of a run"), ("results.md", "not a sweep's")]
)
def test_files_of_others_are_not_replaced(file, words, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / file).write_text("mine")
    with pytest.raises(FastflowError, match=words):
        sweep(tmp_path, "--grid", "objective.alpha=1,2")
    assert [entry.name for entry in (tmp_path / "sweep").iterdir()] == [file]


def test_a_terminal_shows_bars(tmp_path):
    console = quiet()
    console._force_terminal = console.is_interactive = True
    command.run(request(tmp_path, "--grid", "objective.alpha=1,2", "--jobs=2"), console)
    told = console.export_text()
    assert "all steps" in told and "6/6" in told and "alpha-2: done in" in told


def test_failed_runs_are_named_and_the_others_go_on(tmp_path):
    code, told = sweep(tmp_path, "--grid", "objective.alpha=13,14,2")
    assert code == 1
    assert "alpha-13 failed: the disk has gone; see " in told
    assert "alpha-14 failed: killed by SIGKILL; the machine may have run out of memory" in told
    assert "alpha-2: done" in told
    log = tmp_path / "sweep" / "logs" / "alpha-13.txt"
    assert "some words" in log.read_text() and str(log) in told
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [entry["state"] for entry in results["states"]] == ["failed", "failed", "done"]
    sweep(tmp_path, "--grid", "objective.alpha=13,14,2")  # only those are tried again
    assert [len(starts(tmp_path, f"alpha-{alpha}")) for alpha in (13, 14, 2)] == [2, 2, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_all_runs_and_no_process_stays(number, tmp_path, capfd):
    names = ["alpha-15_seed-0", "alpha-15_seed-1"]

    def send() -> None:
        wait_for(lambda: all((tmp_path / "sweep/runs" / name / "status.json").exists() for name in names))
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    with stop_on_signals(), pytest.raises(RunStopped, match="the same command goes on with this sweep") as stopped:
        sweep(tmp_path, "--grid=objective.alpha=15", "--seeds=0,1,2", "--jobs=2")
    thread.join()
    assert stopped.value.exit_code == 128 + number
    for name in names:
        assert (tmp_path / "sweep/runs" / name / "stopped").read_text() == str(int(number))
        assert not is_alive(starts(tmp_path, name)[0][0])
    assert starts(tmp_path, "alpha-15_seed-2") == []
    assert "waiting until 2 runs saved and ended" in capfd.readouterr().err
    assert not (tmp_path / "sweep" / "run.lock").exists()


def test_a_second_ctrl_c_kills_runs_that_do_not_end(tmp_path, capfd):
    run = tmp_path / "sweep/runs/alpha-16"

    def send() -> None:
        for file in ("status.json", "stopped"):
            wait_for((run / file).exists)
            time.sleep(2 * ONE_PRESS_SECONDS)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with stop_on_signals(), pytest.raises(RunStopped):
        sweep(tmp_path, "--grid=objective.alpha=16")
    thread.join()
    assert not is_alive(starts(tmp_path, "alpha-16")[0][0])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FastflowError("the disk is full")])
def test_an_error_ends_the_runs_that_go_on_and_they_save(error, tmp_path, monkeypatch):
    runs = [tmp_path / "sweep/runs" / name for name in ("alpha-15_seed-0", "alpha-15_seed-1")]

    def breaks(self, *_, **__):
        if all((run / "status.json").exists() for run in runs):
            raise error

    monkeypatch.setattr("fastflow.sweep.board.Board.refresh", breaks)
    if isinstance(error, FastflowError):  # whose state cannot be noted either
        monkeypatch.setattr("fastflow.sweep.ledger.Ledger.write", breaks)
    with pytest.raises(type(error), match=str(error)):
        sweep(tmp_path, "--grid=objective.alpha=15", "--seeds=0,1", "--jobs=2")
    for run in runs:
        assert (run / "stopped").read_text() == str(int(signal.SIGTERM))
        assert not is_alive(starts(tmp_path, run.name)[0][0])


def test_a_run_that_is_still_saved_keeps_no_other_waiting(tmp_path):
    """By a process of an earlier sweep, which holds the lock on the run's directory."""
    busy, told = tmp_path / "sweep/runs/alpha-1", []
    busy.mkdir(parents=True)
    with (busy / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def release_later() -> None:
            wait_for((tmp_path / "sweep/runs/alpha-2/policy").exists)
            told.append(starts(tmp_path, "alpha-1"))
            fcntl.flock(lock, fcntl.LOCK_UN)

        thread = threading.Thread(target=release_later)
        thread.start()
        code, _ = sweep(tmp_path, "--grid", "objective.alpha=1,2")
        thread.join()
    assert code == 0 and told == [[]]
    assert len(starts(tmp_path, "alpha-1")) == 1


def test_a_run_that_stays_in_use_ends_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LONGEST_SAVE", 0.3)
    busy = tmp_path / "sweep/runs/alpha-1"
    busy.mkdir(parents=True)
    with (busy / LOCK_FILE).open("w") as lock, pytest.raises(FastflowError, match="is in use by"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(tmp_path, "--grid", "objective.alpha=1,15", "--jobs=2")
    assert not is_alive(starts(tmp_path, "alpha-15")[0][0])


def test_runs_at_once_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "cores", lambda: 9)
    sweep(tmp_path, "--grid", "objective.alpha=1,2", "--jobs=4")
    assert starts(tmp_path, "alpha-1")[0][1] == "2"


def test_the_runs_of_a_sweep_are_a_group(tmp_path):
    assert group_of(tmp_path / "widths", {}) == {"WANDB_RUN_GROUP": "widths"}
    assert group_of(tmp_path / "widths", {"WANDB_RUN_GROUP": "mine"}) == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"jobs": 1}, {}),
        ({"jobs": 2}, {"OMP_NUM_THREADS": "4"}),
        ({"jobs": 2, "given": {"OMP_NUM_THREADS": "1"}}, {}),
        ({"jobs": 20}, {"OMP_NUM_THREADS": "1"}),
        ({"jobs": 2, "gpus": ["0"]}, {"OMP_NUM_THREADS": "4"}),
        ({"jobs": 2, "gpus": ["0", "3"]}, {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "3"}),
        ({"jobs": 2, "devices": 2, "gpus": list("4567")}, {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "6,7"}),
        ({"jobs": 3, "devices": 2, "gpus": list("456")}, {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "6,4"}),
    ],
)
def test_the_share_of_the_second_slot(options, expected):
    asked = {"devices": 1, "cores": 8, "gpus": [], "given": {}, **options}
    assert share_of(1, **asked) == expected
