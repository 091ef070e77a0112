"""A rank that hangs ends the run with its name, the stacks of all and no process left, and the run goes on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from cli_runs import ROOT, lines_in, options, settings, start, wait_for
from fastflow.models.ranks import Ranks
from fastflow.train.ranks.outlook import COMING_SECONDS, PATIENT_SECONDS, SILENT_SECONDS, Outlook, Sign
from fastflow.train.ranks.watch import Watch, where
from preloaded import Preloaded
from rank_runs import assert_gone, finish, ranks_of
from resumed_runs import metrics_of

LEAST = 10  # seconds, of run.hang_after
WITHIN = 120  # seconds: a busy machine, and 30 in which torchrun waits for a rank that does not answer


def sign(rank: int, number: int, place: int, *, steps: int = 3, **more) -> Sign:
    fields = {"is_patient": False, "at": "reward.py:3, score", "waits": False, "pid": 100 + rank, "host": "here"}
    return Sign(rank, number, place, steps, **{**fields, **more})


class TestOutlook:
    def test_ranks_that_move_on_are_left_alone_however_long_they_take(self):
        outlook = Outlook(least=45)
        for number in range(10):
            assert outlook.after(40, [sign(0, number, number), sign(1, number, number // 2)]) is None

    def test_who_gives_no_sign_while_the_others_wait_is_named(self):
        outlook = Outlook(least=45)
        for number in range(int(SILENT_SECONDS)):
            assert outlook.after(1, [sign(0, number, 8, waits=True), sign(1, 0, 7)]) is None
        hang = outlook.after(1, [sign(0, 99, 8, waits=True), sign(1, 0, 7)])
        assert hang is not None and hang.ranks == [1] and hang.is_silent
        assert "rank 1 (process 101 on here) hangs: no sign for 20 seconds" in hang.sentence

    def test_silence_alone_ends_nothing(self):
        outlook = Outlook(least=45)
        assert all(outlook.after(1, [sign(0, number, number), sign(1, 0, 7)]) is None for number in range(100))

    def test_who_is_behind_is_named(self):
        outlook = Outlook(least=45)
        found = [outlook.after(1, [sign(0, n, 8, waits=True), sign(1, n, 7, at="mine.py:4, go")]) for n in range(47)]
        assert found[:45] == [None] * 45
        assert found[46] is not None and found[46].ranks == [1] and not found[46].is_silent
        assert "nothing has moved on for 45 seconds (now in mine.py:4, go)" in found[46].sentence

    def test_of_those_at_one_place_who_waits_is_not_to_blame(self):
        outlook = Outlook(least=5)
        found = [outlook.after(1, [sign(0, n, 7), sign(1, n, 7, waits=True)]) for n in range(8)][-1]
        assert found is not None and found.ranks == [0]

    def test_nobody_is_behind(self):
        outlook = Outlook(least=5)
        found = [outlook.after(1, [sign(rank, n, 7, waits=True) for rank in (0, 1)]) for n in range(8)][-1]
        assert found is not None and "all ranks wait for each other" in found.sentence

    def test_all_hang_and_none_waits_for_another(self):
        outlook = Outlook(least=5)
        found = [outlook.after(1, [sign(rank, n, 7, at="disk.py:1, read") for rank in (0, 1)]) for n in range(8)][-1]
        assert found is not None and found.ranks == [0, 1]
        assert "hang: nothing has moved on for 5 seconds (now in disk.py:1, read); raise" in found.sentence

    def test_the_limit_grows_with_what_the_run_has_taken_before(self):
        outlook = Outlook(least=45)
        for number in range(41):
            assert outlook.after(1, [sign(rank, number, 7, steps=1) for rank in (0, 1)]) is None
        assert outlook.after(1, [sign(rank, 99, 8) for rank in (0, 1)]) is None
        assert outlook.limit == 120
        assert all(outlook.after(1, [sign(rank, n, 8) for rank in (0, 1)]) is None for n in range(100, 215))
        assert outlook.after(10, [sign(rank, 999, 8) for rank in (0, 1)]) is not None

    def test_work_that_shows_no_progress_is_given_more_time(self):
        outlook = Outlook(least=5)
        outlook.after(1, [sign(0, 1, 7, is_patient=True), sign(1, 1, 8, waits=True)])
        assert outlook.limit == PATIENT_SECONDS

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_the_first_step_has_the_limit_of_the_others(self, steps):
        outlook = Outlook(least=5)
        signs = [[sign(0, n, 7, steps=steps), sign(1, n, 8, steps=steps, waits=True)] for n in range(30)]
        assert next(n for n, both in enumerate(signs) if outlook.after(1, both)) == 5

    def test_kernels_that_are_compiled_one_after_another_are_no_standstill(self):
        outlook = Outlook(least=5)
        for n in range(60):
            compiling = sign(0, n, 7, steps=1, attended=n // 4)
            assert outlook.after(1, [compiling, sign(1, n, 8, steps=1, waits=True)]) is None

    def test_ranks_that_never_come_are_named(self):
        outlook = Outlook(least=5)
        assert all(outlook.without(1, [1, 3]) is None for _ in range(int(COMING_SECONDS) - 1))
        hang = outlook.without(1, [1, 3])
        assert hang is not None and hang.ranks == [1, 3] and hang.is_silent
        assert "ranks 1, 3 did not come within 180 seconds" in hang.sentence

    def test_an_engine_that_a_rank_attends_is_no_standstill_and_says_nothing_of_later_ones(self):
        outlook = Outlook(least=5)
        for number in range(300):
            attended = [sign(0, number, 8, waits=True), sign(1, number, 7, attended=10 * number)]
            assert outlook.after(1, attended) is None
        assert outlook.limit == 5
        found = [outlook.after(1, [sign(0, n, 8, waits=True), sign(1, n, 7, attended=2990)]) for n in range(300, 307)]
        assert found[-1] is not None and found[-1].ranks == [1]

    def test_a_rank_at_its_end_is_not_missed(self):
        outlook = Outlook(least=5)
        assert all(outlook.after(1, [sign(0, n, 7), sign(1, 0, 8, has_left=True)]) is None for n in range(30))

    def test_signs_travel_as_text(self):
        assert Sign.from_json(sign(1, 2, 3).to_json()) == sign(1, 2, 3)


def test_a_line_of_ones_own_is_named_rather_than_of_a_library(tmp_path):
    found = []

    def score(value: int) -> int:
        import sys

        found.append(where(sys._getframe()))
        return value

    sorted([1], key=score)
    assert found[0][0].startswith("test_hanging_ranks.py:") and found[0][0].endswith(", score")
    assert where(None) == ("no Python code", False)


def test_a_watch_waits_for_all_and_then_watches_all(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    first, second = (Watch(Ranks(rank, 2), 5.0, tmp_path, at) for rank in (0, 1))
    first._tell()
    assert first._look(COMING_SECONDS - 1) == (None, 0)
    second._tell()
    for _ in range(2):
        assert first._look(1) == (None, 0)
    first._tell()
    hang, speaker = first._look(5)
    assert hang is not None and hang.ranks == [1] and speaker == 0
    assert second._look(1) == (hang, 0)


def test_a_watch_ends_a_wait_for_ranks_that_never_come(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    watch = Watch(Ranks(1, 3), 5.0, tmp_path, at)
    watch._tell()
    hang, _ = watch._look(COMING_SECONDS)
    assert hang is not None and hang.ranks == [0, 2]


def environment(**more: str) -> dict[str, str]:
    """With hanging.py where the ranks can import it."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "400", "TERM": "dumb", **more}


def begin(
    home: Path, *, hangs: int, how: str, new: bool = False, variables: dict[str, str] | None = None, **changes
) -> subprocess.Popen | Preloaded:
    values = settings(home, **{
        "run.steps": 6, "run.save_every": 1, "run.hang_after": LEAST, "objective.name": "flowrl",
        "objective.reward": "hanging:reward", **changes,
    })  # fmt: skip
    more = {"HANGS": str(hangs), "HOW": how, **(variables or {})}
    return start([*options(values), "--devices=2"], env=environment(**more), new=new)


def go_on(home: Path) -> None:
    """The rest of the run, in which nobody hangs."""
    finish(start(["train", "--resume", str(home / "run"), "--devices=2"], env=environment()))
    assert [line["step"] for line in metrics_of(home / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.distributed
@pytest.mark.parametrize(("hangs", "how"), [(1, "sleep"), (0, "loop"), (1, "hold_the_gil")])
def test_a_rank_that_hangs_ends_the_run(tmp_path, hangs, how):
    process = begin(tmp_path, hangs=hangs, how=how, new=how == "hold_the_gil")
    wait_for(lambda: lines_in(tmp_path / "run" / "metrics.jsonl") >= 3, process)
    ranks, before = ranks_of(process), time.monotonic()
    said = finish(process, code=2)
    first = next(line for line in said.splitlines() if "fastflow: error:" in line)
    assert f"error: rank {hangs} (process {ranks[hangs]} on " in first and " hangs: " in first
    assert said.count(" hangs: ") == 1 and "lost another rank" not in said
    assert how == "hold_the_gil" or "hanging.py:" in first
    assert time.monotonic() - before < WITHIN
    assert_gone(ranks, 1)
    for rank in (0, 1):
        stacks = tmp_path / "run" / "stacks" / f"rank-{rank}.txt"
        if how == "hold_the_gil" and rank == hangs:
            assert "hold_the_gil" in said  # a rank that runs no Python prints its stacks instead
        else:
            assert "run" in stacks.read_text() and (rank != hangs or how in stacks.read_text())
    if how == "loop":
        go_on(tmp_path)


@pytest.mark.distributed
def test_a_rank_without_memory_ends_the_run_and_says_so(tmp_path):
    process = begin(tmp_path, hangs=1, how="take_all_memory")
    said = finish(process, code=2)
    assert "error: rank 1 ran out of the machine's memory" in said
    go_on(tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("hangs", "how", "variables"),
    [
        (1, "loop", {"BEFORE": "0"}),
        (1, "stop", {"BEFORE": "0"}),
        (0, "sleep", {"IN_A_SAVE": "yes"}),
        (0, "stop", {"IN_A_SAVE": "yes"}),
    ],
    ids=str,
)
def test_a_hang_in_the_first_step_or_in_a_save_is_found_as_soon(tmp_path, hangs, how, variables):
    process = begin(tmp_path, hangs=hangs, how=how, variables=variables)
    wait_for(lambda: len(ranks_of(process)) == 2, process)
    ranks = ranks_of(process)
    said = finish(process, code=2, seconds=300)
    assert f"error: rank {hangs} (process {ranks[hangs]} on " in said
    assert said.count(" hangs: ") == 1 and "lost another rank" not in said
    assert f"{'no sign' if how == 'stop' else 'nothing has moved on'} for {LEAST} seconds" in said
    assert_gone(ranks, 1)


@pytest.mark.distributed
def test_a_slow_disk_is_no_hang(tmp_path):
    seconds = 0.35  # for each weight and each file: models and a save take longer than run.hang_after
    process = begin(
        tmp_path, hangs=-1, how="", variables={"SLOW": str(seconds)}, **{"run.steps": 1, "run.hang_after": 5}
    )
    finish(process, seconds=300)
    assert len(metrics_of(tmp_path / "run")) == 1
