"""Saves that prove themselves: damage of every kind is found, and only whole saves count for those that are kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastflow.errors import FastflowError
from fastflow.run import checkpoints as module
from fastflow.run.checkpoints import Checkpoints, name_of
from fastflow.run.durable import flush
from fastflow.run.manifest import MANIFEST, Damaged, read_manifest, verify, write_manifest


def save(checkpoints: Checkpoints, step: int, *, metric: float | None = None, updates: int | None = None) -> Path:
    """A save of a few files whose content tells the step."""
    inside = updates is not None
    fresh = checkpoints.begin(name_of(step, updates or step, inside=inside))
    for part in ("policy", "trainer/tensors"):
        (fresh / part).mkdir(parents=True)
        (fresh / part / "model.safetensors").write_bytes(f"{part} of step {step} ".encode() * 100)
    manifest = write_manifest(fresh, step=step, updates=updates or step, metric=metric)
    flush(fresh)
    path = checkpoints.publish(fresh, manifest).path
    checkpoints.retire()
    return path


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class TestDamage:
    @pytest.fixture
    def saves(self, tmp_path) -> tuple[Path, Path]:
        checkpoints = Checkpoints(tmp_path)
        return save(checkpoints, 1), save(checkpoints, 2)

    def check_found(self, run: Path, saves: tuple[Path, Path], caplog, *words: str) -> None:
        with pytest.raises(Damaged):
            verify(saves[1])
        found = Checkpoints(run).newest_whole()
        assert found is not None and found.path == saves[0]
        for word in (saves[1].name, "the one before it is tried", *words):
            assert word in caplog.text
        assert names(run) == ["step-1", "step-2.damaged"]

    @pytest.mark.parametrize("seed", range(12))
    def test_any_bit_of_any_file(self, seed, saves, tmp_path, caplog):
        rng = random.Random(seed)
        file = rng.choice(sorted(path for path in saves[1].rglob("*") if path.is_file()))
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        self.check_found(tmp_path, saves, caplog)

    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    @pytest.mark.parametrize("file", ["policy/model.safetensors", "trainer/tensors/model.safetensors", MANIFEST])
    def test_a_truncated_file(self, file, share, saves, tmp_path, caplog):
        os.truncate(saves[1] / file, int(share * (saves[1] / file).stat().st_size))
        self.check_found(tmp_path, saves, caplog, file)

    def test_a_file_of_the_save_before(self, saves, tmp_path, caplog):
        shutil.copy(saves[0] / "trainer/tensors/model.safetensors", saves[1] / "trainer/tensors/model.safetensors")
        self.check_found(tmp_path, saves, caplog, "trainer/tensors/model.safetensors is not what was written")

    def test_a_missing_file(self, saves, tmp_path, caplog):
        (saves[1] / "policy/model.safetensors").unlink()
        self.check_found(tmp_path, saves, caplog, "policy/model.safetensors cannot be read")

    def test_a_whole_older_save_under_the_newer_name(self, saves, tmp_path, caplog):
        shutil.rmtree(saves[1])
        shutil.copytree(saves[0], saves[1])
        found = Checkpoints(tmp_path).newest_whole()
        assert found is not None and found.path == saves[0]
        assert "it holds step 1, update 1" in caplog.text

    def test_one_that_this_user_may_not_read_is_kept(self, saves, tmp_path, monkeypatch):
        from fastflow.run import manifest

        def refused(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(manifest, "_fingerprint", refused)  # root may read everything
        with pytest.raises(FastflowError, match=r"step-2 may not be read: .* \(Permission denied\); correct the perm"):
            Checkpoints(tmp_path).newest_whole()
        assert names(tmp_path) == ["step-1", "step-2"]

    def test_a_newer_format(self, saves):
        content = json.loads((saves[1] / MANIFEST).read_text())
        (saves[1] / MANIFEST).write_text(json.dumps({**content, "format": 2}))
        with pytest.raises(Damaged, match="it has format 2, and this fastflow reads format 1"):
            read_manifest(saves[1])

    def test_none_is_whole(self, saves, tmp_path):
        for one in saves:
            (one / "policy/model.safetensors").unlink()
        with pytest.raises(
            FastflowError, match=r"no save in .* is whole, of 2 there \(the newest, step-2: policy/model"
        ):
            Checkpoints(tmp_path).newest_whole()
        assert names(tmp_path) == ["step-1", "step-2"]  # nothing is renamed where nothing can be done

    def test_a_damaged_one_goes_once_it_has_enough_successors(self, saves, tmp_path):
        (saves[1] / "policy/model.safetensors").unlink()
        checkpoints = Checkpoints(tmp_path, keep=2)
        checkpoints.newest_whole()
        save(checkpoints, 2)
        assert names(tmp_path) == ["step-1", "step-2", "step-2.damaged"]
        save(checkpoints, 3)
        assert names(tmp_path) == ["step-2", "step-2.damaged", "step-3"]
        save(checkpoints, 4)
        assert names(tmp_path) == ["step-3", "step-4"]

    def test_no_saves(self, tmp_path):
        assert Checkpoints(tmp_path).newest_whole() is None


class TestKept:
    def test_the_newest_ones(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=2)
        for step in range(1, 5):
            save(checkpoints, step)
        assert names(tmp_path) == ["step-3", "step-4"]

    def test_the_one_resumed_from_outlives_its_process_until_its_successors_are_whole(self, tmp_path):
        save(Checkpoints(tmp_path, keep=1), 1)
        checkpoints = Checkpoints(tmp_path, keep=1)
        checkpoints.newest_whole()
        checkpoints.begin("step-2")
        assert names(tmp_path) == ["step-1", "step-2.new"]
        save(checkpoints, 2)
        assert names(tmp_path) == ["step-2"]

    def test_saves_that_nobody_verified_do_not_count(self, tmp_path):
        for step in (1, 2, 3):
            save(Checkpoints(tmp_path, keep=9), step)
        (tmp_path / "checkpoints" / "step-2" / "policy" / "model.safetensors").unlink()
        checkpoints = Checkpoints(tmp_path, keep=2)
        save(checkpoints, 4)
        assert names(tmp_path) == ["step-1", "step-2", "step-3", "step-4"]
        save(checkpoints, 5)
        assert names(tmp_path) == ["step-4", "step-5"]

    def test_a_save_that_was_moved_and_linked_goes_as_a_link(self, tmp_path):
        first = save(Checkpoints(tmp_path, keep=1), 1)
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
        checkpoints = Checkpoints(tmp_path, keep=1)
        assert checkpoints.newest_whole() is not None
        save(checkpoints, 2)
        assert names(tmp_path) == ["step-2"] and verify(tmp_path / "elsewhere")

    @pytest.mark.parametrize(("best", "kept"), [("highest", "step-2"), ("lowest", "step-3")])
    def test_the_best_one(self, best, kept, tmp_path):
        for step, metric in enumerate([0.5, 0.9, 0.1, 0.2, None, 0.4], start=1):
            checkpoints = Checkpoints(tmp_path, keep=1, best=best)  # each in a process of its own
            checkpoints.newest_whole()
            save(checkpoints, step, metric=metric)
        assert names(tmp_path) == [kept, "step-6"]

    def test_of_several_best_ones_the_first(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=1, best="highest")
        for step in (9, 10, 11):
            save(checkpoints, step, metric=0.5 if step < 11 else 0.1)
        assert names(tmp_path) == ["step-11", "step-9"]

    def test_inside_a_step_is_after_the_step_before(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=1)
        save(checkpoints, 9, updates=None)
        save(checkpoints, 9, updates=19)
        assert names(tmp_path) == ["step-9-updates-19"]
        assert Checkpoints(tmp_path).newest_whole().manifest.updates == 19
        save(checkpoints, 10, updates=None)
        assert Checkpoints(tmp_path).newest_whole().path.name == names(tmp_path)[0] == "step-10"

    def test_half_deleted_ones_have_no_name(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, keep=1)
        save(checkpoints, 1)
        monkeypatch.setattr(module.shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(OSError("busy")))
        save(checkpoints, 2)
        assert names(tmp_path) == ["step-1.old", "step-2"]
        monkeypatch.undo()
        checkpoints.discard()
        assert names(tmp_path) == ["step-2"]


class TestShown:
    def test_the_newest_policy_is_a_relative_link(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "run")
        for step in (1, 2):
            save(checkpoints, step)
        assert os.readlink(tmp_path / "run" / "policy") == os.path.join("checkpoints", "step-2", "policy")
        (tmp_path / "run").rename(tmp_path / "moved")
        assert b"step 2" in (tmp_path / "moved" / "policy" / "model.safetensors").read_bytes()
        assert not (tmp_path / "moved" / "adapter").is_symlink()

    def test_a_copy_where_there_are_no_links(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "symlink_to", refuse)
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            save(checkpoints, step)
            assert not (tmp_path / "policy").is_symlink()
            assert f"step {step}".encode() in (tmp_path / "policy" / "model.safetensors").read_bytes()
        monkeypatch.undo()
        save(checkpoints, 3)
        assert (tmp_path / "policy").is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "policy"]

    def test_a_link_is_never_missing_in_between(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep=1)
        save(checkpoints, 1)
        look = (
            "import sys\nmissing = 0\n"
            f"while True:\n    try:\n        open({str(tmp_path / 'policy' / 'model.safetensors')!r}).close()\n"
            "    except FileNotFoundError:\n        missing += 1\n"
            f"    import os\n    if os.path.exists({str(tmp_path / 'end')!r}):\n        sys.exit(missing)\n"
        )
        checkpoints = Checkpoints(tmp_path, keep=30)
        reader = subprocess.Popen([sys.executable, "-c", look])
        for step in range(2, 20):
            save(checkpoints, step)
        (tmp_path / "end").touch()
        assert reader.wait(timeout=60) == 0


def test_everybody_whom_the_umask_allows_may_read(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch(mode=0o600)
    flush(tmp_path)
    umask = os.umask(0o22)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
