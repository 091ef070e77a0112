"""The file of responses, and its parts while it is being made."""

from __future__ import annotations

import errno

import pytest

from evaluations import row
from fastflow.errors import FastflowError
from fastflow.evaluate.responses import Store, complete
from fastflow.run import durable

PARTS = [[(0, None, None)], [(1, None, None)]]


def make(part):
    ((question, _, _),) = part
    return [row(question, 0, right=True)]


def test_parts_go_only_once_the_disk_has_the_whole(tmp_path, monkeypatch):
    """After a power cut the responses are there: in the parts, otherwise in the file."""
    store, flushed = Store(tmp_path, "sums", "0" * 64), []

    def flush(path):
        if path.parent == store.file.parent:
            assert store.part(0).is_file() and store.part(1).is_file()
            raise OSError(errno.EIO, "Input/output error")
        flushed.append(path.parent)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "flush_file", flush)
        with pytest.raises(FastflowError, match="Input/output error"):
            complete(store, PARTS, make, lambda prompts: None)
    assert flushed == [store.part(0).parent] * 2 and store.rows() is None
    rows = complete(store, PARTS, lambda part: pytest.fail("sampled again"), lambda prompts: None)
    assert store.rows() == rows and [one["question"] for one in rows] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == [store.file.name]
