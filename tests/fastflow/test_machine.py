"""What this machine gives the process."""

from __future__ import annotations

from fastflow import machine


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("1000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (str(tmp_path / "max"), str(tmp_path / "absent")))
    assert machine.ram() == 1000
    (tmp_path / "max").write_text("max\n")
    assert machine.ram() > 1000


def test_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert machine.free_shared_memory() > 0
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "absent")
    assert machine.free_shared_memory() is None


def test_cores():
    assert machine.cores() >= 1
