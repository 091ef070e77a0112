"""What a run tells those who watch it from outside."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fastflow.run import status as module
from fastflow.run.pace import RECENT
from fastflow.run.status import StatusSink, describe_machine


def read(run) -> dict:
    return json.loads((run / "status.json").read_text())


def metrics(**changes) -> dict:
    return {"alarms": [], "tokens": 600, "seconds": 3.0, "skipped_updates_total": 0, **changes}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_each_step_is_seen_with_the_time_that_is_left(tmp_path, clock):
    sink = StatusSink(tmp_path, steps=10)
    assert (read(tmp_path)["phase"], read(tmp_path)["step"], read(tmp_path)["eta_seconds"]) == ("running", 0, None)
    for step in (1, 2):
        clock[0] += 3
        sink.write(step, metrics(alarms=["truncation: much"] if step == 2 else []))
    seen = read(tmp_path)
    assert (seen["step"], seen["steps"], seen["eta_seconds"], seen["tokens_per_second"]) == (2, 10, 24.0, 200.0)
    assert seen["alarms"] == ["truncation: much"] and seen["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_skipped_updates_are_counted_over_the_whole_run(tmp_path):
    sink = StatusSink(tmp_path, steps=10, after=3, skipped=2)
    assert read(tmp_path)["skipped_updates"] == 2
    sink.write(4, metrics(skipped_updates_total=3))
    assert read(tmp_path)["skipped_updates"] == 3


def test_the_pace_is_that_of_the_last_steps(tmp_path, clock):
    sink = StatusSink(tmp_path, steps=100)
    for step in range(1, 51):
        clock[0] += 50 if step <= 50 - RECENT else 2
        sink.write(step, metrics())
    assert read(tmp_path)["eta_seconds"] == 100.0


def test_a_resumed_run_counts_its_own_steps_only(tmp_path, clock):
    sink = StatusSink(tmp_path, steps=10, after=8)
    clock[0] += 5
    sink.write(9, metrics())
    assert read(tmp_path)["eta_seconds"] == 5.0


def test_evaluations_have_a_time_of_their_own(tmp_path, clock):
    """A step takes 3 seconds and an evaluation 50, after every fifth step and the last."""
    sink = StatusSink(tmp_path, steps=12, evaluates=lambda step: step % 5 == 0 or step == 12)
    clock[0] += 50
    sink.evaluated_start({"seconds_eval": 50.0, "eval/sums/avg@4": 0.25})
    assert read(tmp_path)["eta_seconds"] is None
    for step in range(1, 6):
        clock[0] += 3 + 50 * (step == 5)
        sink.write(step, metrics(**({"seconds_eval": 50.0, "eval/sums/avg@4": 0.5} if step == 5 else {})))
        if step == 1:
            assert read(tmp_path)["evaluation"] == {"step": 0, "eval/sums/avg@4": 0.25}
            assert read(tmp_path)["eta_seconds"] == 11 * 3 + 3 * 50
    assert read(tmp_path)["eta_seconds"] == 7 * 3 + 2 * 50
    assert read(tmp_path)["evaluation"] == {"step": 5, "eval/sums/avg@4": 0.5}
    sink.evaluating(10, "sums")
    assert read(tmp_path)["phase"] == "evaluating"


def test_an_early_end_is_an_end(tmp_path):
    sink = StatusSink(tmp_path, steps=10)
    sink.write(4, metrics())
    sink.stopped_early("no better")
    sink.done()
    sink.close()
    assert (read(tmp_path)["phase"], read(tmp_path)["stopped_early"], read(tmp_path)["eta_seconds"]) == (
        "done", "no better", 0,
    )  # fmt: skip


@pytest.mark.parametrize(("saved", "phase"), [(True, "done"), (False, "stopped")])
def test_a_run_is_done_once_its_policy_is_saved(saved, phase, tmp_path):
    sink = StatusSink(tmp_path, steps=10)
    sink.write(10, metrics())
    if saved:
        sink.done()
    sink.close()
    assert read(tmp_path)["phase"] == phase


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path):
    sink = StatusSink(tmp_path / "absent", steps=10)
    sink.write(1, metrics())
    sink.close()


@pytest.mark.parametrize("alarms", [[], ["one that the file on the disk does not hold yet"]], ids=["shorter", "longer"])
def test_a_full_disk_takes_the_end_over_the_old_file(alarms, tmp_path, monkeypatch):
    sink = StatusSink(tmp_path, steps=10)
    sink.write(1, metrics(alarms=[] if alarms else ["length collapse: mean 1.0 tokens, 30.0 at the start"]))
    before = tmp_path.joinpath("status.json").stat()

    def fill(path, text, **_):
        path.write_bytes(text.encode()[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fill)
    sink.write(2, metrics(alarms=alarms))
    sink.close()
    assert {"phase": "stopped", "step": 2, "alarms": alarms}.items() <= read(tmp_path).items()
    after = tmp_path.joinpath("status.json").stat()
    assert after.st_ino == before.st_ino and after.st_size >= before.st_size
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_versions_and_hardware_in_a_line():
    import torch

    line = describe_machine(torch.device("cpu"))
    assert f"torch {torch.__version__}" in line and " thread" in line and "\n" not in line
