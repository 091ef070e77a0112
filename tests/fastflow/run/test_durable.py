"""Files that the disk has taken, and that this is seen while it goes on."""

from __future__ import annotations

import errno
import os

import pytest

from fastflow.models.pulse import PULSE, Beating
from fastflow.run import durable
from fastflow.run.manifest import verify, write_manifest


@pytest.fixture
def counted(monkeypatch):
    """Signs of work since the last look, counted from nothing."""
    monkeypatch.setattr(PULSE, "attended", 0)
    return lambda: PULSE.attended


@pytest.mark.parametrize(("size", "signs"), [(0, 1), (4096, 1), (4097, 2), (5 * 4096, 5)])
def test_a_large_file_shows_each_piece(size, signs, tmp_path, counted, monkeypatch):
    monkeypatch.setattr(durable, "PIECE", 4096)
    (tmp_path / "file").write_bytes(bytes(size))
    durable.flush_file(tmp_path / "file")
    assert counted() == signs


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ESPIPE])
def test_what_the_disk_refuses_is_raised_and_what_the_system_lacks_is_not(number, tmp_path, monkeypatch):
    class Library:
        def __init__(self, *_, **__): ...

        def sync_file_range(self, *_) -> int:
            durable.ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(durable, "PIECE", 4096)
    monkeypatch.setattr(durable.ctypes, "CDLL", Library)
    (tmp_path / "file").write_bytes(bytes(9000))
    if number in (errno.EINVAL, errno.ESPIPE):
        durable.flush_file(tmp_path / "file")
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            durable.flush_file(tmp_path / "file")


def test_hashing_shows_each_piece(tmp_path, counted):
    (tmp_path / "weights").write_bytes(bytes(3 * 2**22))
    write_manifest(tmp_path, step=1, updates=1, metric=None)
    assert counted() >= 3
    before = counted()
    verify(tmp_path)
    assert counted() >= before + 3


def test_a_list_shows_each_entry_that_is_read(counted):
    entries = Beating("abc")
    assert len(entries) == 3 and counted() == 0
    assert "".join(entries) == "abc" and counted() == 3
