"""The file of responses, and its parts while it is being made."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from evaluations import row
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.evaluate.responses import Store, complete, requests_of
from fastflow.run import durable


def test_tasks_have_seeds_of_their_own_and_models_the_same():
    prompts = [Prompt(np.array([number])) for number in range(30)]
    of_task = {
        name: [seed for request in requests_of(prompts, 16, 0, name) for seed in request.seeds]
        for name in ("aime24", "aime25", "gym_sums")
    }
    every = [seed for seeds in of_task.values() for seed in seeds]
    assert len(set(every)) == len(every) == 3 * 30 * 16
    assert requests_of(prompts, 16, 0, "aime24")[0].seeds == tuple(of_task["aime24"][:16])
    assert requests_of(prompts, 16, 1, "aime24")[0].seeds != tuple(of_task["aime24"][:16])
    assert of_task["aime24"][0] == 4558709404939626970  # in every process


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
