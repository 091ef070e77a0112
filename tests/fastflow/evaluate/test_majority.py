"""Classes of answers: what is one answer, whatever the order of the responses."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.evaluate.graders.grader import grade
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.evaluate.majority import NO_ANSWER, votes


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
