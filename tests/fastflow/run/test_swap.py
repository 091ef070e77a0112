"""Wherever a process dies while directories are replaced: afterwards the old ones stand, or the new ones, all whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from fastflow.run import swap

PARTS = ("policy", "adapter", "trainer")
OLD = {name: {"a": "old", "b": "old"} for name in PARTS}
NEW = {name: {"a": "new", "c": "new"} for name in PARTS}


class Died(BaseException):
    """The process ended here."""


def write(directory: Path, parts: dict) -> None:
    for name, files in parts.items():
        (directory / name).mkdir(parents=True)
        for file, text in files.items():
            (directory / name / file).write_text(text)


def read(directory: Path) -> dict:
    return {
        part.name: {file.name: file.read_text() for file in part.iterdir()}
        for part in directory.iterdir()
        if part.is_dir()
    }


def replace(directory: Path, parts: dict) -> None:
    write(swap.begin(directory), parts)
    swap.commit(directory)


def dying(monkeypatch, at: int) -> list[str]:
    """The process dies before its n-th change of the directory. Returns the changes so far."""
    changes: list[str] = []
    originals = {(os, "rename"): os.rename, (Path, "rename"): Path.rename, (Path, "rmdir"): Path.rmdir}
    originals |= {(Path, "mkdir"): Path.mkdir, (shutil, "rmtree"): shutil.rmtree}

    def stopping(original):
        def act(*arguments, **options):
            if len(changes) == at:
                raise Died
            changes.append(original.__name__)
            return original(*arguments, **options)

        return act

    for (owner, name), original in originals.items():
        monkeypatch.setattr(owner, name, stopping(original))
    return changes


@pytest.mark.parametrize("old", [OLD, {}, {"policy": OLD["policy"]}], ids=["all", "none", "one"])
@pytest.mark.parametrize("at", range(40))
def test_a_death_at_any_moment(at, old, tmp_path, monkeypatch):
    write(tmp_path, old)
    with monkeypatch.context() as patched:
        dying(patched, at)
        try:
            replace(tmp_path, NEW)
            died = False
        except Died:
            died = True
    if died:
        swap.recover(tmp_path, PARTS)
    assert read(tmp_path) in ([old, NEW] if died else [NEW])


@pytest.mark.parametrize("second", range(0, 24, 3))
@pytest.mark.parametrize("first", range(0, 24, 2))
def test_a_death_while_recovering_from_a_death(first, second, tmp_path, monkeypatch):
    write(tmp_path, OLD)
    for at, act in ((first, lambda: replace(tmp_path, NEW)), (second, lambda: swap.recover(tmp_path, PARTS))):
        with monkeypatch.context() as patched:
            dying(patched, at)
            with contextlib.suppress(Died):
                act()
    swap.recover(tmp_path, PARTS)
    assert read(tmp_path) in (OLD, NEW)


def test_a_disk_that_is_full_only_when_it_is_asked_to_flush(tmp_path, monkeypatch):
    write(tmp_path, OLD)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(tmp_path, NEW)
    swap.discard(tmp_path)
    assert read(tmp_path) == OLD


def test_what_is_not_a_part_is_left_alone(tmp_path):
    write(tmp_path, {"notes.old": {"a": "mine"}, "policy": {"a": "b"}})
    swap.recover(tmp_path, PARTS)
    assert read(tmp_path) == {"notes.old": {"a": "mine"}, "policy": {"a": "b"}}
