"""What the system says of work that shows nothing else."""

from __future__ import annotations

import time

from fastflow.train.ranks.effort import PIECE, moved


def test_a_file_that_is_written_and_read_is_work(tmp_path):
    before = moved()
    (tmp_path / "file").write_bytes(bytes(4 * PIECE))
    written = moved()
    assert written >= before + 4
    (tmp_path / "file").read_bytes()
    assert moved() >= written + 4


def test_a_wait_is_none():
    before = moved()
    time.sleep(0.2)
    assert moved() <= before + 1
