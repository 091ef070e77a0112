"""The plot of quality against diversity: its front, its SVG, and estimates over prompts."""

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastflow.evaluate.creative.pareto import Point, draw, front
from fastflow.evaluate.estimates import over_prompts, paired

NAMES = {"svg": "http://www.w3.org/2000/svg"}
VALUES = st.integers(0, 4).map(float)


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314, our own drawing


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(values):
    points = [Point(str(place), x, y) for place, (x, y) in enumerate(values)]
    kept = front(points)
    assert kept
    for place, point in enumerate(points):
        beaten = any(
            (other.x > point.x and other.y >= point.y) or (other.x >= point.x and other.y > point.y) for other in points
        )
        assert beaten != (place in kept)
    for one, other in itertools.pairwise(kept):
        assert points[one].x <= points[other].x and points[one].y >= points[other].y


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=6),
    st.text(alphabet='a<&">', max_size=5),
)
def test_every_model_stands_in_the_drawing_and_in_its_frame(values, name):
    points = [Point(f"{name}{place}", x, y, error, error) for place, (x, y, error) in enumerate(values)]
    tree = parsed(draw(points, title="Poems", x_label="diversity", y_label="quality"))
    circles = tree.findall("svg:circle", NAMES)
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.get("cx")) <= 640 and 0 <= float(circle.get("cy")) <= 400
    texts = ["".join(text.itertext()) for text in tree.findall("svg:text", NAMES)]
    assert all(any(point.name in text for text in texts) for point in points)
    assert len(tree.findall("svg:line[@class='grid']", NAMES)) >= 4


def test_higher_is_up_and_to_the_right():
    points = [Point("a", 0.1, 0.5), Point("b", 0.3, 0.7), Point("c", 0.2, 0.2)]
    tree = parsed(draw(points, title="t", x_label="x", y_label="y"))
    a, b, c = ((float(dot.get("cx")), float(dot.get("cy"))) for dot in tree.findall("svg:circle", NAMES))
    assert a[0] < c[0] < b[0] and b[1] < a[1] < c[1]
    assert [dot.get("class") for dot in tree.findall("svg:circle", NAMES)] == [None, "on", None]


def test_estimates_leave_out_prompts_without_a_value():
    assert over_prompts([1.0, None, 3.0]) == {"value": 2.0, "error": pytest.approx(1.0), "prompts": 2}
    assert over_prompts([None]) == {"value": None, "error": None, "prompts": 0}
    found = paired([1.0, 2.0, None, 5.0], [0.0, 3.0, 1.0, None])
    assert found["value"] == 0 and found["prompts"] == 2 and found["high"] == pytest.approx(1.959964)
    assert paired([1.0], [None])["low"] is None
