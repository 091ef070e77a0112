"""Classes of answers: what is one answer, whatever the order of the responses."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.evaluate.graders.grader import grade
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.majority import MOST_IN_PAIRS, NO_ANSWER, PROBE, votes
from fastflow.evaluate.scores import majority


class InProcess:
    """A pool without processes."""

    def grade(self, items):
        return map(grade, items)


class Relation:
    """A grader that takes these (gold, answer) for right, and nothing else."""

    def __init__(self, pairs):
        self.pairs = pairs

    def grade(self, items):
        for item in items:
            answer = item.response.removeprefix("\\boxed{").removesuffix("}")
            yield Verdict.RIGHT if (item.gold, answer) in self.pairs else Verdict.WRONG


def rows_of(answers):
    return [{"question": 0, "answer": answer} for answer in answers]


def partition(answers, pool, grader="math"):
    members = {}
    for answer, number in zip(answers, votes(rows_of(answers), grader, pool), strict=True):
        members.setdefault(number, set()).add(answer)
    return {frozenset(answers) for answers in members.values()}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["5 cm", "5 cm", "5", "5 mm", "5 km"], [{"5 cm", "5"}, {"5 mm"}, {"5 km"}]),
        (["5 mm", "5 mm", "5", "5 cm"], [{"5 mm", "5"}, {"5 cm"}]),
        (["x=2", "2", "2", "y=2", "x=2"], [{"x=2", "2"}, {"y=2"}]),
        (["50", "50", "50\\%", "0.5"], [{"50", "50\\%"}, {"0.5"}]),
        (["101_2", "101", "5"], [{"101_2"}, {"101"}, {"5"}]),  # 101 answers 101_2, but not the other way
        (["1/2", "0.5", "\\frac{1}{2}"], [{"1/2", "0.5", "\\frac{1}{2}"}]),
    ],
)
def test_a_class_holds_answers_that_are_all_the_same(answers, expected):
    pytest.importorskip("math_verify")
    for order in permutations(answers):
        assert partition(order, InProcess()) == {frozenset(members) for members in expected}


ANSWERS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)
PAIRS = st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")))


@given(answers=ANSWERS, pairs=PAIRS, draw=st.data())
def test_classes_do_not_depend_on_the_order_of_responses(answers, pairs, draw):
    pool = Relation(pairs)
    found = partition(answers, pool)
    assert found == partition(draw.draw(st.permutations(answers)), pool)
    for members in found:
        assert all((one, other) in pairs for one in members for other in members if one != other)


def test_classes_are_numbered_as_they_first_come():
    pool = Relation({("a", "c"), ("c", "a")})
    rows = [*rows_of(["b", "c", "", "a", "b"]), {"question": 1, "answer": "a"}]
    assert votes(rows, "math", pool) == [0, 1, NO_ANSWER, 1, 0, 0]
    assert votes(rows, "exact", pool) == [0, 1, NO_ANSWER, 2, 0, 0]


@pytest.mark.parametrize("junk", [3, 22, 80, 300])
def test_right_answers_are_one_class_however_many_others_there_are(junk):
    pytest.importorskip("math_verify")
    right = ["1/2"] * 5 + ["0.5"] * 5 + ["\\frac{1}{2}"] * 4
    answers = [*right, *["3"] * 6, *(str(100 + number) for number in range(junk))]
    rows = [row | {"verdict": "right" if row["answer"] in right else "wrong"} for row in rows_of(answers)]
    for row, number in zip(rows, votes(rows, "math", InProcess()), strict=True):
        row["vote_class"] = number
    assert majority(rows) == 1.0
    assert len({row["vote_class"] for row in rows}) == 2 + junk


def test_a_rare_answer_joins_the_class_of_a_frequent_one():
    """Beyond the answers that are all compared in pairs, each is compared with one of each class."""
    numbers = [str(10 + number) for number in range(MOST_IN_PAIRS - 2)]
    frequent = [*["5 cm"] * 3, *["5 mm"] * 4, *numbers * 2]
    found = partition([*frequent, "5", "0.05 m", "900.0", "900"], InProcess())
    assert {frozenset({"5 mm", "5"}), frozenset({"5 cm", "0.05 m"})} <= found
    assert {frozenset({"900.0"}), frozenset({"900"})} <= found  # two rare ones are not compared with each other
    assert len(found) == MOST_IN_PAIRS + 2


class Counting(InProcess):
    """Counts comparisons. slow: an answer whose comparisons all hit the limit of time."""

    def __init__(self, slow=""):
        self.slow, self.compared = slow, []

    def grade(self, items):
        for item in items:
            self.compared.append((item.gold, item.response))
            is_slow = self.slow and self.slow in (item.gold, item.response.removeprefix("\\boxed{").removesuffix("}"))
            yield Verdict.TIMED_OUT if is_slow else grade(item)


def test_an_answer_that_hits_the_limit_does_so_once():
    pool, answers = Counting("123"), [str(number) for number in range(100, 150)]
    assert partition([*answers, "100.0"], pool, "numeric") >= {frozenset({"123"}), frozenset({"100", "100.0"})}
    assert [pair for pair in pool.compared if "123" in pair[0] + pair[1]] == [(PROBE, "\\boxed{123}")]


def test_comparisons_grow_with_the_number_of_answers_and_not_with_its_square():
    pool = Counting()
    assert len(partition([str(number) for number in range(1000)], pool, "numeric")) == 1000
    assert len(pool.compared) <= 1000 * (MOST_IN_PAIRS + 1)
