"""Two runs never write one directory: the second is refused before it loads anything, and the dead hold nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli_runs import ROOT, lines_in, options, settings, start, wait_for
from fastflow import cli
from fastflow.errors import FastflowError
from fastflow.run.directory import check_output
from fastflow.run.lock import HOLDER_FILE, LOCK_FILE, RunLock

HOLD = """
import sys
from pathlib import Path
from fastflow.run.lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
input()
"""
STUCK = """
import fastflow.models.opening, time
from pathlib import Path
def load(*arguments):
    Path(HOME, "loading").touch()
    time.sleep(60)
fastflow.models.opening.load_causal_lm = load
"""


@pytest.fixture
def hold():
    """Starts a process that holds the lock of a directory."""
    holders = []

    def run(directory: Path) -> subprocess.Popen:
        path = os.pathsep.join(entry for entry in (str(ROOT), *sys.path) if entry)
        holders.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        )  # fmt: skip
        assert holders[-1].stdout.readline() == "held\n"
        return holders[-1]

    yield run
    for process in holders:
        process.kill()
        process.communicate()


def test_the_same_command_twice_at_once(tmp_path):
    """The second is refused while the first still loads its model, and says who holds the directory."""
    arguments = options(settings(tmp_path))
    first = start(arguments, program=STUCK.replace("HOME", repr(str(tmp_path))))
    try:
        wait_for((tmp_path / "loading").exists, first)
        second = start([*arguments, "--model.path=/absent"])  # which it would stumble over later
        out, err = second.communicate(timeout=60)
        assert second.returncode == 2
        assert err.count("\n") == 1
        assert f"{tmp_path / 'run'} is in use by process {first.pid} on {socket.gethostname()}" in err
        assert "choose another" in err and "Traceback" not in out + err
    finally:
        first.kill()
        first.communicate()
    third = start(arguments)  # the first is dead, and its lock with it
    _, err = third.communicate(timeout=120)
    assert third.returncode == 0, err
    assert lines_in(tmp_path / "run" / "metrics.jsonl") == 3
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_overwrite_does_not_break_the_lock(hold, tmp_path, capsys):
    values = settings(tmp_path, run__overwrite="true")
    assert cli.main(options(values)) == 0
    hold(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert cli.main(options(values)) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_the_demo_is_locked_too(hold, tmp_path, capsys):
    hold(tmp_path / "demo")
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(number, hold, tmp_path):
    process = hold(tmp_path / "run")
    with pytest.raises(FastflowError, match=f"process {process.pid} on"):
        RunLock(tmp_path / "run")
    process.send_signal(number)
    process.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    check_output(tmp_path / "run", overwrite=False)  # the file that it left is not a thing of the user's
    with RunLock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_refusal_leaves_no_file_open(hold, tmp_path, monkeypatch):
    """A sweep asks five times a second."""
    hold(tmp_path / "run")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FastflowError, match="is in use by"):
        RunLock(tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FastflowError, match="cannot be written"):
        RunLock(tmp_path / "other")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_the_lock_made_goes_with_it(tmp_path):
    (tmp_path / "there").mkdir()
    RunLock(tmp_path / "there" / "a" / "b").release()
    assert list((tmp_path / "there").iterdir()) == []
    lock = RunLock(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "config.yaml").touch()
    lock.release()
    lock.release()
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_two_locks_of_one_process_are_one(hold, tmp_path):
    outer, inner = RunLock(tmp_path / "run"), RunLock(tmp_path / "run" / ".." / "run")
    inner.release()
    inner.release()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    outer.release()
    assert not (tmp_path / "run").exists()
    hold(tmp_path / "run")
    with pytest.raises(FastflowError):
        RunLock(tmp_path / "run")


class TestWithoutFlock:
    @pytest.fixture(autouse=True)
    def no_flock(self, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", fail)

    def holder(self, directory: Path, **changes) -> Path:
        directory.mkdir()
        born = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
        known = {"host": socket.gethostname(), "pid": os.getpid(), "born": born, "since": "now"}
        (directory / HOLDER_FILE).write_text(json.dumps({**known, **changes}))
        return directory

    def test_a_file_stands_in_and_says_so(self, tmp_path, caplog):
        lock = RunLock(tmp_path / "run")
        assert "has no file locks (No locks available)" in caplog.text and HOLDER_FILE in caplog.text
        assert (tmp_path / "run" / HOLDER_FILE).exists() and not (tmp_path / "run" / LOCK_FILE).exists()
        lock.release()
        assert not (tmp_path / "run").exists()

    def test_a_full_disk_leaves_neither_file_nor_descriptor(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = os.listdir("/proc/self/fd")
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(FastflowError, match="cannot be written"):
            RunLock(tmp_path / "run")
        monkeypatch.undo()
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("changes", [{}, {"host": "elsewhere", "pid": 1}])
    def test_a_holder_that_lives_or_cannot_be_seen(self, changes, tmp_path):
        directory = self.holder(tmp_path / "run", **changes)
        with pytest.raises(FastflowError, match=rf"process .*; if that process is gone, remove .*{HOLDER_FILE}"):
            RunLock(directory)

    @pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"born": "1"}])
    def test_a_holder_that_is_dead_or_whose_number_another_process_has(self, changes, tmp_path):
        directory = self.holder(tmp_path / "run", **changes)
        with RunLock(directory):
            assert json.loads((directory / HOLDER_FILE).read_text())["pid"] == os.getpid()
