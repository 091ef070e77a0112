"""What a sweep tells while it runs."""

from __future__ import annotations

import io
import json

from rich.console import Console

from fastflow.sweep.board import Board
from sweep_runs import request


def test_the_time_left_is_told_once_steps_were_made(tmp_path):
    (run,) = request(tmp_path, "--seeds=0", "--run.steps=4").runs
    board = Board(Console(file=io.StringIO()), [run], [])
    assert board.outlook() == "the time left is not known yet"
    run.directory.mkdir(parents=True)
    for step, told in ((1, "about 0 s left"), (4, "all steps done")):
        (run.directory / "status.json").write_text(json.dumps({"step": step}))
        board.refresh([run])
        assert board.outlook() == told


def test_a_sweep_that_begins_when_all_is_done(tmp_path):
    (run,) = request(tmp_path, "--seeds=0").runs
    assert Board(Console(file=io.StringIO()), [run], [run]).outlook() == "all steps done"
