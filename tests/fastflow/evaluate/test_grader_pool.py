"""The pool: time bombs cost their limit and no more, order is kept, dead workers are replaced."""

import json
import random
import time
from pathlib import Path

import pytest

from fastflow.errors import FastflowError
from fastflow.evaluate.graders.algebra import symbolic
from fastflow.evaluate.graders.grader import Item
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.graders.verdict import Verdict

BOMBS = [
    r"\sum_{k=1}^{10^{8}} k!",
    r"99999999! + 1",
    r"9^{9^{9^{9}}}",
    r"9^{9^{9^9}} - 9^{9^{9^9}} + 5",
    r"\frac{7^{\left(7^{\left(7^{\left(7^7\right)}\right)} - 1\right)} - 7}{6}",
    r"\prod_{k=1}^{10^9} k",
    r"\left(\left(\left(5!\right)!\right)!\right)! - 1",
    r"\binom{10^{12}}{5 \cdot 10^{11}} - 1",
    r"10**10**10**10 - 10",
    r"\sum_{i=1}^{1000}\sum_{j=1}^{1000}\sum_{k=1}^{1000} ijk",
    r"\log(\log(9^{9^{9^{9}}}))",
    r"\lfloor \pi \cdot 10^{10^{9}} \rfloor",
]
TIMEOUT = 2.0
BUSY = 20.0  # seconds that other work on the machine may add: without its limit a bomb takes hours


@pytest.fixture(scope="module")
def pool():
    pytest.importorskip("math_verify")
    with GraderPool(("math",), workers=2, timeout=TIMEOUT) as pool:
        assert list(pool.grade([Item("math", "1", "\\boxed{1}")])) == [Verdict.RIGHT]  # the workers have started
        yield pool


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_time_bomb_costs_at_most_its_limit(pool, bomb):
    start = time.monotonic()
    (verdict,) = pool.grade([Item("math", "5", f"\\boxed{{{bomb}}}")])
    assert verdict in (Verdict.TIMED_OUT, Verdict.WRONG)
    assert time.monotonic() - start < TIMEOUT + BUSY


def test_answers_behind_a_bomb_keep_their_order(pool):
    items = [Item("math", str(number), f"\\boxed{{{number % 3}}}") for number in range(6)]
    items.insert(2, Item("math", "5", f"\\boxed{{{BOMBS[0]}}}"))
    values = [verdict.value for verdict in pool.grade(items)]
    assert values == ["right", "right", "timed_out", "right", "wrong", "wrong", "wrong"]


def test_a_thousand_plain_answers_take_at_most_20_seconds(pool):
    draw = random.Random(0)
    forms = ("{0}", r"\frac{{{0}}}{{7}}", "{0}.5", r"\sqrt{{{0}}}", "({0}, 3)", r"{0}\text{{ cm}}", "x = {0}")
    items, expected = [], []
    for number in range(1000):
        gold, given = (draw.choice(forms).format(number) for _ in range(2))
        items.append(Item("math", gold, f"We add and get\n\n$\\boxed{{{given}}}$."))
        expected.append(gold == given)
    start = time.monotonic()
    verdicts = list(pool.grade(items))
    assert time.monotonic() - start < 20 + BUSY
    assert all(verdict is Verdict.RIGHT for verdict, equal in zip(verdicts, expected, strict=True) if equal)


def test_workers_that_cannot_start_are_an_error_in_words(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with GraderPool((), workers=1) as pool, pytest.raises(FastflowError, match="before it was ready"):
        list(pool.grade([Item("exact", "a", "a")]))


def test_an_answer_that_takes_all_memory_times_out():
    pytest.importorskip("math_verify")
    plain, large = Item("math", "1", r"\boxed{1}"), Item("math", "720", r"\boxed{2^{10^{10}} - 2^{10^{10}} + 720}")
    with GraderPool(("math",), workers=1, timeout=60, memory=350 * 2**20) as pool:
        assert list(pool.grade([plain])) == [Verdict.RIGHT]
        start = time.monotonic()
        assert list(pool.grade([large, plain])) == [Verdict.TIMED_OUT, Verdict.RIGHT]
        assert time.monotonic() - start < 50  # the limit of memory came before that of time


def test_dead_workers_are_replaced_and_lose_one_answer_each_at_most(pool):
    items = [Item("math", "1", "\\boxed{1}") for _ in range(20)]
    while not all(worker.is_ready for worker in pool._workers):
        assert list(pool.grade(items)) == 20 * [Verdict.RIGHT]
    for worker in pool._workers:
        worker._process.kill()
        worker._process.wait()
    verdicts = list(pool.grade(items))
    assert verdicts.count(Verdict.TIMED_OUT) <= 2 and verdicts.count(Verdict.RIGHT) >= 18


def test_a_call_that_was_given_up_leaves_no_answers_behind(pool):
    items = [Item("exact", "1", "1"), *(Item("exact", "1", "2") for _ in range(50))]
    assert next(pool.grade(items)) is Verdict.RIGHT
    assert list(pool.grade([Item("exact", "1", "1")] * 3)) == 3 * [Verdict.RIGHT]


def test_without_math_verify_the_pool_says_what_to_install(monkeypatch):
    def absent(module, *, extra, purpose):
        raise FastflowError(f'{purpose} needs the package {module}: pip install "fastflow[{extra}]"')

    monkeypatch.setattr(symbolic, "need", absent)
    with pytest.raises(FastflowError, match=r"fastflow\[grade\]"):
        GraderPool(("math",))


def test_the_table_holds_through_the_pool(pool):
    lines = [json.loads(line) for line in (Path(__file__).parent / "graders.jsonl").read_text().splitlines()]
    items = [Item(line["grader"], line["gold"], line["response"], line.get("choices") or {}) for line in lines]
    verdicts = list(pool.grade(items))
    right = [verdict is Verdict.RIGHT for verdict in verdicts]
    assert not [line for line, is_right in zip(lines, right, strict=True) if is_right and not line["right"]]
    assert sum(is_right == line["right"] for line, is_right in zip(lines, right, strict=True)) >= 75
