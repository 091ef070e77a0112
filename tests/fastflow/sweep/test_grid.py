"""Which runs a grid makes."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.errors import FastflowError
from fastflow.sweep.grid import LONGEST_NAME, MOST_RUNS, SEED, Axis, Point, expand, label_of

LABELS = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4, unique=True)
NAMES = ["objective.alpha", "optim.lr", "lora.alpha", SEED, "variant"]


def axis(name: str, *labels: str) -> Axis:
    return Axis(name, tuple(Point(label, {name: label}, (f"--{name}={label}",)) for label in labels))


@st.composite
def grids(draw) -> list[Axis]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    return [axis(name, *draw(LABELS)) for name in names]


@given(grids())
@settings(deadline=None, max_examples=200)
def test_every_combination_is_one_run(axes):
    cells = expand(axes)
    wanted = set(itertools.product(*([point.label for point in entry.points] for entry in axes)))
    found = [tuple(cell.settings[entry.name] for entry in axes) for cell in cells]
    assert len(found) == len(set(found)) and set(found) == wanted
    for cell in cells:
        assert cell.options == tuple(f"--{name}={value}" for name, value in cell.settings.items())


@given(grids())
@settings(deadline=None, max_examples=200)
def test_directories_differ_on_every_file_system_and_need_no_quotes(axes):
    names = [cell.name for cell in expand(axes)]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name) and len(name) <= LONGEST_NAME


@given(grids())
@settings(deadline=None, max_examples=100)
def test_groups_hold_one_run_for_each_seed(axes):
    seeds = next((len(entry.points) for entry in axes if entry.name == SEED), 1)
    members: dict[tuple, list] = {}
    for cell in expand(axes):
        others = tuple(value for name, value in cell.settings.items() if name != SEED)
        members.setdefault(others, []).append(cell)
    assert all(len(cells) == seeds and len({cell.group for cell in cells}) == 1 for cells in members.values())


def test_names_and_order():
    cells = expand([axis("objective.alpha", "1", "2"), axis(SEED, "0", "1")])
    assert [cell.name for cell in cells] == [
        "alpha-1_seed-0", "alpha-2_seed-0", "alpha-1_seed-1", "alpha-2_seed-1",
    ]  # fmt: skip
    assert [cell.group for cell in cells] == ["alpha 1", "alpha 2", "alpha 1", "alpha 2"]
    both = expand([axis("objective.alpha", "1"), axis("lora.alpha", "2")])
    assert both[0].name == "objective.alpha-1_lora.alpha-2"


def test_without_axes_there_is_one_run():
    assert [(cell.name, cell.group) for cell in expand([])] == [("run", "all runs")]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([axis("optim.lr")], "optim.lr no values"),
        ([axis("optim.lr", "1", "1")], "the value 1 twice"),
        ([axis("optim.lr", "1"), axis("optim.lr", "2")], "names optim.lr twice"),
        ([axis("optim.lr", *map(str, range(MOST_RUNS + 1)))], f"has {MOST_RUNS + 1} runs"),
    ],
)
def test_refused(axes, words):
    with pytest.raises(FastflowError, match=words):
        expand(axes)


@pytest.mark.parametrize(("value", "text"), [(1e-5, "1e-05"), (2, "2"), (True, "true"), ("a b", "a b"), ([1], "[1]")])
def test_labels(value, text):
    assert label_of(value) == text
